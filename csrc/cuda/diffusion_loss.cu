// mean (m - (a x0 + b noise))^2 of each sample, and its gradient in m.
#include "../likelihood.h"
#include "loss.cuh"

namespace fastdiff {
namespace cuda {
namespace {

typedef Loss<DiffusionLossParams> DiffusionLoss;

// Blocks of the forward pass beside each other on a multiprocessor; 0: as it comes, which spills where 4 do not.
template <int kAccess>
constexpr int kBlocks = kAccess == kTiles ? 4 : 0;

// d = m - (a x0 + b noise); a coefficient of 0 reads nothing.
template <int kAccess, class T, int N>
FD_DEVICE void differences(const DiffusionLoss& a, const Quad& q, float (&d)[N]) {
  const int64_t t = load(a.p.t + q.b);
  const float of_x0 = coefficient(a.p.target_x0, t, a.p.T), of_noise = coefficient(a.p.target_eps, t, a.p.T);
  float m[N], unread[N], x0[N] = {}, noise[N] = {};
  if (of_noise != 0) {                                // first, for drawing takes the most registers
    if (a.p.noise) load_quad<kAccess>(reached<Other<N>>(a.p.noise, a.p.noise_dtype), a.other, q, noise);
    else draw_quad<kAccess>(a.p.rng, a.p.sample_ids, a.p.stream, q, noise);
  }
  if (of_x0 != 0) load_start<kAccess>(a, q, x0);
  load_outputs<kAccess, T>(a, q, false, m, unread);
  FD_UNROLL
  for (int j = 0; j < N; ++j) d[j] = residual(m[j], x0[j], noise[j], of_x0, of_noise);
}

template <class T, int kAccess>
__global__ void __launch_bounds__(kBlock, kBlocks<kAccess>) diffusion_loss_kernel(const DiffusionLoss a) {
  float sum = 0;
  each_quad<kAccess>(a, [&](const Quad& q) {
    float d[kQuad];
    differences<kAccess, T>(a, q, d);
    sum = sum_of<kAccess>(sum, q, [&](float sum, int j) { return madd(d[j], d[j], sum); });
  });
  put_sum(a, sum, a.p.loss, a.p.workspace);
}

template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock, N == kWide ? 4 : 0) diffusion_loss_backward_kernel(const DiffusionLoss a) {
  const Quad q = gradient_quad<kAccess, N>(a);
  if (q.b >= a.walk.B || q.count == 0) return;
  const float upstream = load(static_cast<const float*>(a.p.grad_loss) + q.b);
  const float factor = upstream * weight_of(a.mean, q.b) * float(a.mean.scale);
  float d[N], none[N] = {};
  differences<kAccess, T>(a, q, d);
  FD_UNROLL
  for (int j = 0; j < N; ++j) d[j] *= factor;
  store_gradient<kAccess, T>(a, q, d, none);
}

Operand noise_of(const DiffusionLossParams& p) { return {p.noise, p.noise_dtype, p.noise_layout}; }

bool is_supported(const DiffusionLossParams& p) {
  return p.x_start_dtype != kF64 && !(p.noise && p.noise_dtype == kF64);
}

}  // namespace

Status diffusion_loss(const DiffusionLossParams& p, Place place) {
  if (!is_supported(p)) return {kUnsupported, 0, kF64};
  DiffusionLoss a = make_loss(p, noise_of(p), 1.0);
  return launch_sums(a, access_of(a, noise_of(p), nullptr), p.loss, place, [](auto type, Access access) {
    typedef typename decltype(type)::Is T;
    return kernel_of(access, diffusion_loss_kernel<Any, kElements>, diffusion_loss_kernel<Loose<T>, kVectors>,
                     diffusion_loss_kernel<Loose<T>, kTiles>);
  });
}

Status diffusion_loss_backward(const DiffusionLossParams& p, Place place) {
  if (!is_supported(p)) return {kUnsupported, 0, kF64};
  DiffusionLoss a = make_loss(p, noise_of(p), 2.0);
  const Access access = wide_access_of(a, noise_of(p), p.grad);
  return launch_gradient(a, access, place, [&](auto type, Access access) {
    typedef typename decltype(type)::Is T;
    return kernel_of<T>(a.walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      typedef Loose<T> U;
      return kernel_of(access, diffusion_loss_backward_kernel<Any, kElements, kQuad>,
                       diffusion_loss_backward_kernel<U, kVectors, N>, diffusion_loss_backward_kernel<U, kTiles, N>);
    });
  });
}

int64_t loss_workspace(int64_t B, int64_t C, int64_t S) {
  const Walk walk = make_walk(B, C, S, kChannelsFirst);
  const uint32_t flat = chunks_of(walk, kVectors), tiled = chunks_of(walk, kTiles), most = flat > tiled ? flat : tiled;
  return most > 1 ? B * int64_t(most) : 0;
}

}  // namespace cuda
}  // namespace fastdiff
