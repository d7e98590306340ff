// x_t = alpha[t] x0 + sigma[t] noise, one thread a quad.
#include "../step.h"
#include "quad.cuh"

namespace fastdiff {
namespace cuda {
namespace {

struct QSample {
  QSampleParams p;
  Walk walk;
  Strides x_start, noise, x_t;
};

// Element i of a sample, or pixel i of a channel, mirrored within its line.
FD_DEVICE int64_t mirror(int64_t i, int64_t W) {
  const int64_t line = divide(i, W);
  return line * W + (line + 1) * W - 1 - i;
}

template <int kAccess, class T>
FD_DEVICE void load_mirrored(const QSample& a, const Quad& q, float (&x0)[kQuad]) {
  const T* const p = static_cast<const T*>(a.p.x_start) + q.b * a.x_start.sample;
  if constexpr (kAccess == kTiles) {
    const auto read = [&](int c, int s) {
      return widen(load(p + c * a.x_start.channel + mirror(q.tile.first + s, a.p.W) * a.x_start.pixel));
    };
    gather(q.tile, has_runs(a.x_start), read, x0);
  } else {
    FD_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = j < q.count ? q.first + j : q.first, c = divide(i, q.S);
      x0[j] = widen(load(p + c * a.x_start.channel + (mirror(i, a.p.W) - c * q.S) * a.x_start.pixel));
    }
  }
}

// x_start as x0, read from the mirrored column where the sample is flipped.
template <int kAccess, class T>
FD_DEVICE void load_start(const QSample& a, const Quad& q, float (&x0)[kQuad]) {
  if (a.p.flip && load(a.p.flip + q.b)) load_mirrored<kAccess, T>(a, q, x0);
  else load_quad<kAccess, T>(a.p.x_start, a.x_start, q, x0);
}

template <int kAccess>
FD_DEVICE void load_start(const QSample& a, const Quad& q, float (&x0)[kQuad]) {
  const int32_t dtype = a.p.x_start_dtype;
  if (dtype == kF32) return load_start<kAccess, float>(a, q, x0);
  if (dtype == kF16) return load_start<kAccess, half_t>(a, q, x0);
  if (dtype == kBF16) return load_start<kAccess, bfloat16_t>(a, q, x0);
  load_start<kAccess, uint8_t>(a, q, x0);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) x0[j] = scale_byte(x0[j]);
}

// A coefficient of the sample's t; NaN where there is none.
FD_DEVICE float coefficient(const void* table, int64_t t, int64_t T) {
  return t < 0 || t >= T ? nanf("") : load(static_cast<const float*>(table) + t);
}

template <class T, int kAccess>
__global__ void __launch_bounds__(kBlock) q_sample_kernel(const QSample a) {
  const Quad q = find_quad<kAccess>(a.walk, a.x_t);
  if (q.b >= a.walk.B || q.count == 0) return;
  const int64_t t = load(a.p.t + q.b);
  const float alpha = coefficient(a.p.alpha, t, a.p.T), sigma = coefficient(a.p.sigma, t, a.p.T);
  float x0[kQuad], noise[kQuad], x_t[kQuad];
  load_start<kAccess>(a, q, x0);
  if (a.p.noise) load_quad<kAccess>(a.p.noise_dtype, a.p.noise, a.noise, q, noise);
  else draw_quad<kAccess>(a.p.rng, a.p.sample_ids, a.p.stream, q, noise);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) x_t[j] = noised(x0[j], noise[j], alpha, sigma);
  store_quad<kAccess, T>(a.p.x_t, a.x_t, q, x_t);
  if (a.p.noise_out) store_quad<kAccess, float>(a.p.noise_out, a.x_t, q, noise);
}

Access access_of(const QSampleParams& p, const Walk& walk) {
  return access_of(walk, {{p.x_start, p.x_start_dtype, p.x_start_layout},
                          {p.noise, p.noise_dtype, p.noise_layout},
                          {p.x_t, p.x_t_dtype, p.x_t_layout},
                          {p.noise_out, kF32, p.x_t_layout}});
}

}  // namespace

Status q_sample(const QSampleParams& p, Place place) {
  if (p.x_start_dtype == kF64) return {kUnsupported, 0, p.x_start_dtype};
  if (p.noise && p.noise_dtype == kF64) return {kUnsupported, 0, p.noise_dtype};
  const int64_t S = p.H * p.W;
  const QSample arguments = {p, make_walk(p.B, p.C, S, p.x_t_layout), make_strides(p.x_start_layout, p.C, S),
                             make_strides(p.noise_layout, p.C, S), make_strides(p.x_t_layout, p.C, S)};
  const Access access = access_of(p, arguments.walk);
  return dispatch(p.x_t_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    const auto kernel =
        kernel_of(access, q_sample_kernel<T, kElements>, q_sample_kernel<T, kVectors>, q_sample_kernel<T, kTiles>);
    return launch(kernel, grid_of(arguments.walk, access), block_of(arguments.walk, access), 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
