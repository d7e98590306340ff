// mean (m - (a x0 + b noise))^2 of each sample, and its gradient in m.
#include "kernels.h"
#include "loss.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

template <class Real>
struct DiffusionLoss {
  typedef typename Lanes<Real>::Value Value;
  static constexpr int kCount = Lanes<Real>::kCount;

  struct Buffers {
    Buffer<Real> m, x0, noise;
  };

  // A tile as vectors read it; NULL stands for zeros.
  struct Inputs {
    const Real *m, *x0, *noise;
    Real a, b;
    bool bytes;
  };

  const DiffusionLossParams& p;
  Grid grid;

  explicit DiffusionLoss(const DiffusionLossParams& params)
      : p(params), grid(make_grid(p.B, p.C, p.H * p.W, p.model_layout)) {}

  // A coefficient of 0 reads nothing.
  Inputs read(const Tile& tile, Buffers& to) const {
    const int64_t t = p.t[tile.b];
    Inputs in{};
    in.a = static_cast<const Real*>(p.target_x0)[t], in.b = static_cast<const Real*>(p.target_eps)[t];
    in.m = fetch(model_view(p, p.model_output, 0), grid, tile, to.m);
    in.bytes = p.x_start_dtype == kU8 && in.a != 0;
    if (in.a != 0) in.x0 = start_tile(p, grid, tile, to.x0);
    if (in.b != 0) in.noise = noise(tile, to.noise);
    return in;
  }

  const Real* noise(const Tile& tile, Buffer<Real>& to) const {
    const View given = make_view(p.noise, p.noise_dtype, p.noise_layout, p.C, grid.S);
    if (p.noise) return fetch(given, grid, tile, to);
    return draw_into(noise_key(p.rng, p.sample_ids, tile.b, p.stream), grid, tile, to);
  }

  template <bool kBytes>
  FD_SIMD Value difference(const Inputs& in, int i, int count) {
    const Value x0 = zero_or(in.x0, i, count);
    return residual(zero_or(in.m, i, count), kBytes ? scale_byte(x0) : x0, zero_or(in.noise, i, count), in.a, in.b);
  }

  template <bool kBytes>
  FD_SIMD double sum_of_squares(const Inputs& in, int n) {
    return sum_terms<Real>(n, [&](int i, int count) __attribute__((always_inline)) {
      const Value d = difference<kBytes>(in, i, count);
      return d * d;
    });
  }

  double operator()(const Tile& tile) const {
    Buffers buffers;
    const Inputs in = read(tile, buffers);
    return in.bytes ? sum_of_squares<true>(in, tile.n) : sum_of_squares<false>(in, tile.n);
  }

  template <bool kBytes>
  FD_SIMD void scale(const Inputs& in, Real factor, int n, Real* out) {
    int i = 0;
    for (; i + kCount <= n; i += kCount) store(out + i, difference<kBytes>(in, i, kCount) * factor);
    if (i < n) store(out + i, difference<kBytes>(in, i, n - i) * factor);
  }

  void differentiate(const Tile& tile) const {
    Buffers buffers;
    Buffer<Real> result;
    const Inputs in = read(tile, buffers);
    const View mean = model_view(p, p.grad, 0);
    const Real factor = Real(2 * entry<Real>(p.grad_loss, tile.b) * mean_factor<Real>(p, tile.b));
    Real* const out = target(mean, grid, tile, result);
    if (in.bytes) scale<true>(in, factor, tile.n, out);
    else scale<false>(in, factor, tile.n, out);
    flush<Real>(mean, grid, tile, out);
    if (!p.learned) return;
    memset(result.at, 0, sizeof result);
    flush<Real>(model_view(p, p.grad, p.C), grid, tile, result.at);
  }
};

Status check(const DiffusionLossParams& p) {
  if (p.x_start_dtype > kU8 || p.noise_dtype > kF64 || p.model_dtype > kF64) return {kUnsupported, 0, p.model_dtype};
  return check_timesteps(p);
}

template <class Real>
Status forward(const DiffusionLossParams& p) {
  const DiffusionLoss<Real> kernel(p);
  sum_samples<Real>(kernel.grid, p.num_threads, p.workspace, p.loss, kernel,
                    [&](int64_t b) { return mean_factor<Real>(p, b); });
  return {};
}

template <class Real>
Status backward(const DiffusionLossParams& p) {
  const DiffusionLoss<Real> kernel(p);
  for_each_tile(kernel.grid, p.num_threads, [&](const Tile& tile) { kernel.differentiate(tile); });
  return {};
}

}  // namespace

Status diffusion_loss(const DiffusionLossParams& p) {
  const Status status = check(p);
  if (status.code != kOk) return status;
  return p.model_dtype == kF64 ? FD_FLOAT64(diffusion_loss, p, forward<double>(p)) : forward<float>(p);
}

Status diffusion_loss_backward(const DiffusionLossParams& p) {
  const Status status = check(p);
  if (status.code != kOk) return status;
  return p.model_dtype == kF64 ? FD_FLOAT64(diffusion_loss_backward, p, backward<double>(p)) : backward<float>(p);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
