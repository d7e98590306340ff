// x_t = alpha[t] x0 + sigma[t] noise, one thread a quad.
#include "../step.h"
#include "start.cuh"

namespace fastdiff {
namespace cuda {
namespace {

struct QSample {
  QSampleParams p;
  Walk walk;
  Strides x_start, noise, x_t;
};

template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock) q_sample_kernel(const QSample a) {
  const Quad q = find_quad<kAccess, N>(a.walk, a.x_t);
  if (q.b >= a.walk.B || q.count == 0) return;
  const int64_t t = load(a.p.t + q.b);
  const float alpha = coefficient(a.p.alpha, t, a.p.T), sigma = coefficient(a.p.sigma, t, a.p.T);
  float x0[N], noise[N], x_t[N];
  load_start<kAccess>(a, q, x0);
  if (a.p.noise) load_quad<kAccess>(a.p.noise_dtype, a.p.noise, a.noise, q, noise);
  else draw_quad<kAccess>(a.p.rng, a.p.sample_ids, a.p.stream, q, noise);
  FD_UNROLL
  for (int j = 0; j < N; ++j) x_t[j] = noised(x0[j], noise[j], alpha, sigma);
  store_quad<kAccess, T>(a.p.x_t, a.x_t, q, x_t);
  if constexpr (N == kQuad)
    if (a.p.noise_out) store_quad<kAccess, float>(a.p.noise_out, a.x_t, q, noise);
}

Access find_access(const QSampleParams& p, Walk& walk) {
  return widen_walk(walk, p.x_t_layout, {{p.x_start, p.x_start_dtype, p.x_start_layout},
                                         {p.noise, p.noise_dtype, p.noise_layout},
                                         {p.x_t, p.x_t_dtype, p.x_t_layout},
                                         {p.noise_out, kF32, p.x_t_layout}});
}

}  // namespace

Status q_sample(const QSampleParams& p, Place place) {
  if (p.x_start_dtype == kF64) return {kUnsupported, 0, p.x_start_dtype};
  if (p.noise && p.noise_dtype == kF64) return {kUnsupported, 0, p.noise_dtype};
  const int64_t S = p.H * p.W;
  QSample arguments = {p, make_walk(p.B, p.C, S, p.x_t_layout), make_strides(p.x_start_layout, p.C, S),
                       make_strides(p.noise_layout, p.C, S), make_strides(p.x_t_layout, p.C, S)};
  const Access access = find_access(p, arguments.walk);
  return dispatch(p.x_t_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    const auto kernel = kernel_of<T>(arguments.walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      return kernel_of(access, q_sample_kernel<T, kElements, kQuad>, q_sample_kernel<T, kVectors, N>,
                       q_sample_kernel<T, kTiles, N>);
    });
    return launch(kernel, grid_of(arguments.walk, access), block_of(arguments.walk, access), 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
