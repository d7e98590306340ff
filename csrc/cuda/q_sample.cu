// x_t = alpha[t] x0 + sigma[t] noise.
#include "../step.h"
#include "share.cuh"
#include "start.cuh"

namespace fastdiff {
namespace cuda {
namespace {

// A thread's quads: drawing takes longer than all else, a given noise none of a thread's time.
constexpr int kDrawn = 1, kGiven = 4;

struct QSample {
  QSampleParams p;
  Walk walk;
  Share share;            // kVectors alone
  Strides x_start, noise, x_t;
};

struct Scales {
  float alpha, sigma;
};

FD_DEVICE Scales scales_of(const QSample& a, int64_t b) {
  const int64_t t = load(a.p.t + b);
  return {coefficient(a.p.alpha, t, a.p.T), coefficient(a.p.sigma, t, a.p.T)};
}

template <class T, int kAccess, int N>
FD_DEVICE void noise_quad(const QSample& a, const Quad& q, const Scales& scales) {
  const Strides &in = kAccess == kVectors ? a.x_start : a.noise, &out = kAccess == kVectors ? a.x_start : a.x_t;
  float x0[N], noise[N], x_t[N];
  // In the order that takes the fewest registers.
  if (kAccess == kTiles) load_start<kAccess>(a, q, x0);
  if (a.p.noise) load_quad<kAccess>(reached<Other<N>>(a.p.noise, a.p.noise_dtype), in, q, noise);
  else draw_quad<kAccess>(a.p.rng, a.p.sample_ids, a.p.stream, q, noise);
  if (kAccess != kTiles) load_start<kAccess>(a, q, x0);
  FD_UNROLL
  for (int j = 0; j < N; ++j) x_t[j] = noised(x0[j], noise[j], scales.alpha, scales.sigma);
  store_quad<kAccess>(reached<T>(a.p.x_t, a.p.x_t_dtype), out, q, x_t);
  if constexpr (N == kQuad)
    if (a.p.noise_out) store_quad<kAccess>(reached<float>(a.p.noise_out, kF32), out, q, noise);
}

template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock) q_sample_kernel(const QSample a) {
  if constexpr (kAccess == kVectors) {
    const Start start = find_start<kAccess>(a.share);
    const Scales scales = scales_of(a, start.b);
    const int64_t end = end_of(a.walk, a.share, start);
    FD_ROLLED
    for (int64_t index = start.index; index < end; index += a.share.threads)
      noise_quad<T, kAccess, N>(a, vector_quad<N>(a.walk, start.b, index), scales);
  } else {
    const Quad q = find_quad<kAccess, N>(a.walk, a.x_t);
    if (q.b < a.walk.B && q.count != 0) noise_quad<T, kAccess, N>(a, q, scales_of(a, q.b));
  }
}

Access find_access(const QSampleParams& p, Walk& walk) {
  return widen_walk(walk, p.x_t_layout, {{p.x_start, p.x_start_dtype, p.x_start_layout},
                                         {p.noise, p.noise_dtype, p.noise_layout},
                                         {p.x_t, p.x_t_dtype, p.x_t_layout},
                                         {p.noise_out, kF32, p.x_t_layout}});
}

// Where no element has to be told from another, any order that all tensors share is that of a contiguous one.
void forget_order(QSampleParams& p) {
  if (!p.noise || p.flip || p.x_start_layout != p.x_t_layout || p.noise_layout != p.x_t_layout) return;
  p.x_start_layout = p.noise_layout = p.x_t_layout = kChannelsFirst;
}

}  // namespace

Status q_sample(const QSampleParams& params, Place place) {
  QSampleParams p = params;
  if (p.x_start_dtype == kF64) return {kUnsupported, 0, p.x_start_dtype};
  if (p.noise && p.noise_dtype == kF64) return {kUnsupported, 0, p.noise_dtype};
  forget_order(p);
  const int64_t S = p.H * p.W;
  QSample arguments = {p, make_walk(p.B, p.C, S, p.x_t_layout), {}, make_strides(p.x_start_layout, p.C, S),
                       make_strides(p.noise_layout, p.C, S), make_strides(p.x_t_layout, p.C, S)};
  const Access access = find_access(p, arguments.walk);
  return dispatch(p.x_t_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    const auto kernel = kernel_of<T>(arguments.walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      return kernel_of(access, q_sample_kernel<Any, kElements, kQuad>, q_sample_kernel<T, kVectors, N>,
                       q_sample_kernel<Loose<T>, kTiles, N>);
    });
    const Walk& walk = arguments.walk;
    const Share share = arguments.share = make_share(walk, access, p.noise ? kGiven : kDrawn);
    if (access == kVectors) return launch(kernel, grid_of(walk, share), share.threads, 0, place, arguments);
    return launch(kernel, grid_of(walk, access), block_of(walk, access), 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
