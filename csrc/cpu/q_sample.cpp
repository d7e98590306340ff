// x_t = alpha[t] x0 + sigma[t] noise, tile by tile.
#include "../step.h"
#include "kernels.h"
#include "tile.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

template <class Real>
struct QSample {
  const QSampleParams& p;
  Grid grid;
  View x_start, noise, x_t, noise_out;

  explicit QSample(const QSampleParams& params)
      : p(params),
        grid(make_grid(p.B, p.C, p.H * p.W, p.x_t_layout)),
        x_start(make_view(p.x_start, p.x_start_dtype, p.x_start_layout, p.C, grid.S)),
        noise(make_view(p.noise, p.noise_dtype, p.noise_layout, p.C, grid.S)),
        x_t(make_view(p.x_t, p.x_t_dtype, p.x_t_layout, p.C, grid.S)),
        noise_out(make_view(p.noise_out, sizeof(Real) == 4 ? kF32 : kF64, p.x_t_layout, p.C, grid.S)) {}

  void operator()(const Tile& tile) const {
    Buffer<Real> x0_buffer, noise_buffer, x_t_buffer;
    const bool flip = p.flip && p.flip[tile.b];
    const Real* x0 = flip ? gather(x_start, grid, tile, p.W, true, x0_buffer) : fetch(x_start, grid, tile, x0_buffer);
    const Real* z = p.noise ? fetch(noise, grid, tile, noise_buffer)
                            : draw_into(noise_key(p.rng, p.sample_ids, tile.b, p.stream), grid, tile, noise_buffer);
    Real* there = in_place<Real>(x_t, grid, tile);
    Real* out = there ? there : x_t_buffer.at;
    const Real alpha = static_cast<const Real*>(p.alpha)[p.t[tile.b]];
    const Real sigma = static_cast<const Real*>(p.sigma)[p.t[tile.b]];
    if (p.x_start_dtype == kU8) combine<true>(x0, z, alpha, sigma, tile.n, out);
    else combine<false>(x0, z, alpha, sigma, tile.n, out);
    flush(x_t, grid, tile, static_cast<const Real*>(out));
    if (p.noise_out) flush(noise_out, grid, tile, z);
  }

  template <bool kBytes>
  static void combine(const Real* x_start, const Real* noise, Real alpha, Real sigma, int n, Real* x_t) {
    for (int i = 0; i < n; i += Lanes<Real>::kCount) {
      const auto value = load(x_start + i);
      store(x_t + i, noised(kBytes ? scale_byte(value) : value, load(noise + i), alpha, sigma));
    }
  }
};

template <class Real>
Status run(const QSampleParams& p) {
  const QSample<Real> kernel(p);
  for_each_tile(kernel.grid, p.num_threads, kernel);
  return {};
}

}  // namespace

Status q_sample(const QSampleParams& p) {
  if (p.x_start_dtype > kU8 || p.noise_dtype > kF64 || p.x_t_dtype > kF64) return {kUnsupported, 0, p.x_t_dtype};
  for (int64_t b = 0; b < p.B; ++b)
    if (p.t[b] < 0 || p.t[b] >= p.T) return {kIndexOutOfRange, b, p.t[b]};
  return p.x_t_dtype == kF64 ? FD_FLOAT64(q_sample, p, run<double>(p)) : run<float>(p);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
