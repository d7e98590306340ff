// SiLU and the logistic function of vectors.
#pragma once
#include "pack.h"

namespace fastdiff {
namespace FD_LEVEL {

// SiLU is worked out from t = k h with k = -log2 e, which comes for nothing with the terms of h: exp(-h) = 2^t, and with
// a polynomial for k 2^t the factor goes where a 1 would stand: h / (1 + exp(-h)) = t / (k + k 2^t). (h > 2.3e38
// overflows.)
constexpr double kLog2E = 1.44269504088896341;
template <class V> constexpr float kFactor = float(-kLog2E);
template <> constexpr double kFactor<double> = -kLog2E;

// k 2^r within 2^-26 (degree 6), 2^-23 (5) or 2^-18 (4), minimax: of r in [0, 1] where 2^floor(t) is one instruction,
// else of |r| <= 1/2.
template <int kDegree, int N> FD_SIMD Pack<vfloat, N> exp2_fraction(Pack<vfloat, N> r) {
#if defined(__AVX512F__)
  constexpr float kTerms[3][7] = {
      {-1.44269872f, -0.999793172f, -0.348328263f, -0.0750366747f, -0.019525677f},
      {-1.4426949f, -1.00000846f, -0.346468419f, -0.0805403516f, -0.0129688764f, -0.00270877057f},
      {-1.44269502f, -0.999999702f, -0.346578389f, -0.0800455436f, -0.0139636155f, -0.00179466757f, -3.13097349e-4f},
  };
#else
  constexpr float kTerms[3][7] = {
      {-1.44269395f, -0.999963403f, -0.346603811f, -0.0806724206f, -0.013806738f},
      {-1.44269514f, -0.999999702f, -0.346565932f, -0.080079861f, -0.0139588555f, -0.00191539002f},
      {-1.44269502f, -1.0f, -0.346573532f, -0.0800743178f, -0.0138765462f, -0.00193320145f, -2.2139326e-4f},
  };
#endif
  Pack<vfloat, N> q = broadcast_pack<N>(kTerms[kDegree - 4][kDegree]);
  FD_UNROLL
  for (int i = kDegree - 1; i >= 0; --i) q = madd(q, r, broadcast_pack<N>(kTerms[kDegree - 4][i]));
  return q;
}

// k (1 + 2^t); NaN passes. Vectors go through in step: one after the other they would fill the scheduler with waiting.
template <int kDegree, int N> FD_SIMD Pack<vfloat, N> one_and_exp2(Pack<vfloat, N> t) {
  Pack<vfloat, N> r, power;
#if defined(__AVX512F__)
  FD_UNROLL
  for (int k = 0; k < N; ++k) r.v[k] = (vfloat)_mm512_reduce_ps((__m512)t.v[k], _MM_FROUND_TO_NEG_INF);
  power = exp2_fraction<kDegree>(r);
  FD_UNROLL
  for (int k = 0; k < N; ++k) power.v[k] = (vfloat)_mm512_scalef_ps((__m512)power.v[k], (__m512)t.v[k]);
#else
  const vfloat magic = set1(12582912.0f);                              // 1.5 * 2^23: adding it rounds to an integer
  Pack<vfloat, N> shifted;
  FD_UNROLL
  for (int k = 0; k < N; ++k) {
    const vfloat limited = limit(t.v[k], -125.0f, 125.0f);             // 2^n stays a number
    shifted.v[k] = limited + magic;
    r.v[k] = limited - (shifted.v[k] - magic);
  }
  power = exp2_fraction<kDegree>(r);
  FD_UNROLL
  for (int k = 0; k < N; ++k) power.v[k] = as_float(as_uint(power.v[k]) + (as_uint(shifted.v[k]) << 23));
#endif
  return power + broadcast_pack<N>(kFactor<vfloat>);
}

template <int kDegree, int N> FD_SIMD Pack<double, N> one_and_exp2(Pack<double, N> t) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) t.v[k] = -kLog2E * (1 + __builtin_exp2(t.v[k]));
  return t;
}

// h sigmoid(h) of k h.
template <int kDegree, class V, int N> FD_SIMD Pack<V, N> silu(Pack<V, N> t) {
  return t / one_and_exp2<kDegree>(t);
}

template <int kDegree, class V, int N> FD_SIMD Pack<V, N> sigmoid(Pack<V, N> h) {
  const Pack<V, N> factor = broadcast_pack<N>(kFactor<V>);
  return factor / one_and_exp2<kDegree>(h * factor);
}

// As good as a result that is rounded to T once more needs.
template <class T> constexpr int kDegree = 6;
template <> constexpr int kDegree<half_t> = 5;
template <> constexpr int kDegree<bfloat16_t> = 4;

}  // namespace FD_LEVEL
}  // namespace fastdiff
