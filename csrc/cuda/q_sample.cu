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

// x_start as x0, read from the mirrored column where the sample is flipped.
template <bool kVector, class T>
FD_DEVICE void load_start(const QSample& a, const Quad& q, float (&x0)[kQuad]) {
  if (!a.p.flip || !load(a.p.flip + q.b)) return load_quad<kVector, T>(a.p.x_start, a.x_start, q, x0);
  const T* const p = static_cast<const T*>(a.p.x_start);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const int64_t i = j < q.count ? q.first + j : q.first;
    const int64_t line = divide(i, a.p.W), c = divide(i, q.S);
    const int64_t mirrored = line * a.p.W + (line + 1) * a.p.W - 1 - i;
    const int64_t s = mirrored - c * q.S;
    x0[j] = widen(load(p + q.b * a.x_start.sample + c * a.x_start.channel + s * a.x_start.pixel));
  }
}

template <bool kVector>
FD_DEVICE void load_start(const QSample& a, const Quad& q, float (&x0)[kQuad]) {
  const int32_t dtype = a.p.x_start_dtype;
  if (dtype == kF32) return load_start<kVector, float>(a, q, x0);
  if (dtype == kF16) return load_start<kVector, half_t>(a, q, x0);
  if (dtype == kBF16) return load_start<kVector, bfloat16_t>(a, q, x0);
  load_start<kVector, uint8_t>(a, q, x0);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) x0[j] = scale_byte(x0[j]);
}

// A coefficient of the sample's t; NaN where there is none.
FD_DEVICE float coefficient(const void* table, int64_t t, int64_t T) {
  return t < 0 || t >= T ? nanf("") : load(static_cast<const float*>(table) + t);
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kBlock) q_sample_kernel(const QSample a) {
  const Quad q = find_quad<kVector>(a.walk);
  if (q.b >= a.walk.B || q.count == 0) return;
  const int64_t t = load(a.p.t + q.b);
  const float alpha = coefficient(a.p.alpha, t, a.p.T), sigma = coefficient(a.p.sigma, t, a.p.T);
  float x0[kQuad], noise[kQuad], x_t[kQuad];
  load_start<kVector>(a, q, x0);
  if (a.p.noise) load_quad<kVector>(a.p.noise_dtype, a.p.noise, a.noise, q, noise);
  else draw_quad(a.p.rng, a.p.sample_ids, a.p.stream, q, noise);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) x_t[j] = noised(x0[j], noise[j], alpha, sigma);
  store_quad<kVector, T>(a.p.x_t, a.x_t, q, x_t);
  if (a.p.noise_out) store_quad<kVector, float>(a.p.noise_out, a.x_t, q, noise);
}

bool has_vectors(const QSampleParams& p, const Walk& walk) {
  return has_vectors(p.x_start, p.x_start_dtype, p.x_start_layout, walk) &&
         has_vectors(p.noise, p.noise_dtype, p.noise_layout, walk) &&
         has_vectors(p.x_t, p.x_t_dtype, p.x_t_layout, walk) && has_vectors(p.noise_out, kF32, p.x_t_layout, walk);
}

}  // namespace

Status q_sample(const QSampleParams& p, Place place) {
  if (p.x_start_dtype == kF64) return {kUnsupported, 0, p.x_start_dtype};
  if (p.noise && p.noise_dtype == kF64) return {kUnsupported, 0, p.noise_dtype};
  const int64_t S = p.H * p.W;
  const QSample arguments = {p, make_walk(p.B, p.C, S, p.x_t_layout), make_strides(p.x_start_layout, p.C, S),
                             make_strides(p.noise_layout, p.C, S), make_strides(p.x_t_layout, p.C, S)};
  return dispatch(p.x_t_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    const auto kernel = has_vectors(p, arguments.walk) ? q_sample_kernel<T, true> : q_sample_kernel<T, false>;
    return launch(kernel, grid_of(arguments.walk), kBlock, 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
