// Logarithms, exponentials and the normal distribution's tail as the likelihood needs them, over float, double and, on the
// host, vfloat. Float polynomials are our own, with their error stated; double is the mathematics library's.
#pragma once
#include "philox.h"
#ifndef FD_LEVEL
#include "cuda/common.cuh"
#endif

namespace fastdiff {
namespace FD_SPACE {

// raise(v) = e^(v / kUnit): a device has powers of two, and coefficients take the factor.
#ifdef FD_LEVEL
constexpr double kUnit = 1;

// At least e^-60: what is below counts for nothing, and its products would be slow denormals.
template <class Value>
FD_FN Value raise(Value v) {
  return exp(where(v < -60.0f, Value{} - 60.0f, v));
}

FD_FN double raise(double v) { return exp(v); }

template <class Value>
FD_FN Value minus_magnitude(Value v) {
  return -magnitude(v);
}

template <class Value>
FD_FN Value exp_within(Value v) {
  return exp(v);
}

template <class Value>
FD_FN Value quotient(Value a, Value b) {
  return a / b;
}

template <class Value>
FD_FN Value inverse_of(Value v) {
  return (Value{} + 1.0f) / v;
}

template <class Value>
FD_FN Value limited(Value v, Value bound) {
  return clip(v, bound);
}

template <class Value>
FD_FN Value at_most(Value v, Value most) {
  return where(v > most, most, v);
}
#else
constexpr double kUnit = 1.4426950408889634074;

FD_DEVICE float raise(float v) { return exp2_of(v); }

// e^v within 4 ulp for |v| <= 87, above as there, below 0: 2^t of a rounded t, and to first order what the rounding left.
FD_DEVICE float exp_within(float v) {
  const float near = v > 87.0f ? 87.0f : v, t = near * float(kUnit), power = exp2_of(t);
  return fmaf(power, fmaf(t, 1.90465432e-9f, fmaf(t, -0.693147182f, near)), power);
}

FD_DEVICE float minus_magnitude(float v) { return fminf(v, -v); }
FD_DEVICE float quotient(float a, float b) { return approximate_quotient(a, b); }
FD_DEVICE float inverse_of(float v) { return approximate_reciprocal(v); }
FD_DEVICE float at_most(float v, float most) { return lesser(v, most); }
#endif

template <class Value>
struct Scalar {
  typedef float Is;
};
template <>
struct Scalar<double> {
  typedef double Is;
};

// Whether what is for elements of a condition must be computed: a scalar branches, a vector has elements of both kinds.
FD_FN bool is_needed(bool condition) { return condition; }
#ifdef FD_LEVEL
FD_FN bool is_needed(vint) { return true; }
#endif

// first + x (second + x (...)).
template <class Value, class Real>
FD_FN Value polynomial(Value x, Real first, Real last) {
  return madd(x, last, first);
}

template <class Value, class Real, class... Rest>
FD_FN Value polynomial(Value x, Real first, Real second, Rest... rest) {
  return madd(polynomial(x, second, rest...), x, first);
}

// ln v within 2 ulp, v a positive normal number.
template <class Value>
FD_FN Value log_of(Value v) {
  const auto shifted = as_uint(v) - 0x3f3504f3u;
  const Value exponent = int_to_float(as_int(shifted) >> 23);
  const Value f = as_float((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const Value p = polynomial(f, -0.5f, kLog0, kLog1, kLog2, kLog3, kLog4, kLog5, kLog6, kLog7, kLog8);
  return madd(exponent, kLn2, madd(f * f, p, f));
}

FD_FN double log_of(double v) { return log(v); }

// ln(1 + v), v > -1; NaN of NaN.
template <class Value>
FD_FN Value log_one_plus(Value v) {
  const Value sum = v + 1.0f;
  return log_of(sum) + quotient(v - (sum - 1.0f), sum);                     // what the sum lost
}

// e^v - 1, and e^v - 1 - v in `beyond`, each within a few ulp. Below 1/2 from the latter's series.
template <class Value>
FD_FN Value exp_minus_one(Value v, Value& beyond) {
  typedef typename Scalar<Value>::Is Real;
  const auto near = magnitude(v) < Real(0.5);
  Value series = {}, far = {};
  if (is_needed(near)) {
    const Value tail = polynomial(v, Real(1) / 2, Real(1) / 6, Real(1) / 24, Real(1) / 120, Real(1) / 720,
                                  Real(1) / 5040, Real(1) / 40320, Real(1) / 362880);
    series = tail * v * v;
  }
  if (is_needed(!near)) far = exp(v) - Real(1);
  beyond = where(near, series, far - v);
  return where(near, series + v, far);
}

// In double the series goes on to 1 / 17!.
FD_FN double exp_minus_one(double v, double& beyond) {
  double tail = 0, factor = 1.0 / 355687428096000.0;
  for (int n = 17; n >= 2; --n) tail = madd(tail, v, factor), factor *= n;
  const double series = tail * v * v, far = exp(v) - 1;
  const bool near = magnitude(v) < 0.5;
  beyond = near ? series : far - v;
  return near ? series + v : far;
}

template <class Value>
FD_FN Value exp_minus_one(Value v) {
  Value beyond;
  return exp_minus_one(v, beyond);
}

// 1 - e^(-v / kUnit) for v >= 0 within a few ulp, fade being raise(-v).
template <class Value>
FD_FN Value complement(Value v, Value fade) {
  constexpr double u = 1 / kUnit, u2 = u * u;
  const Value p = polynomial(v, float(0.999999998743 * u), float(-0.499999818774 * u2), float(0.166662418687 * u2 * u),
                             float(-0.0416300728319 * u2 * u2), float(0.00818961363116 * u2 * u2 * u),
                             float(-0.00112340421905 * u2 * u2 * u2));
  return where(v < float(0.5 * kUnit), v * p, Value{} + 1.0f - fade);
}

FD_FN double complement(double v, double fade) { return v < 0.5 ? -exp_minus_one(-v) : 1 - fade; }

// (1 - Phi(y)) / phi(y) of the normal distribution, y >= 0, within 3 ulp: t P(t), t = 1 / (1 + 0.4 y).
template <class Value>
FD_FN Value mills_ratio(Value y) {
  const Value t = inverse_of(madd(y, 0.4f, Value{} + 1.0f));
  Value p = madd(t, 0.0412914865f, -0.137923971f);
  p = madd(t, p, 0.055433467f);
  p = madd(t, p, 0.317653626f);
  p = madd(t, p, -0.427980989f);
  p = madd(t, p, 0.0398502797f);
  p = madd(t, p, 0.0174982287f);
  p = madd(t, p, 0.211720869f);
  p = madd(t, p, 0.33576557f);
  p = madd(t, p, 0.400005639f);
  p = madd(t, p, 0.399999976f);
  return p * t;
}

// Laplace's continued fraction where erfc would soon underflow.
FD_FN double mills_ratio(double y) {
  if (!(y > 5)) return 1.2533141373155002512 * erfc(y * 0.70710678118654752440) * exp(y * y / 2);
  double tail = y;
  for (int n = 60; n > 0; --n) tail = y + n / tail;
  return 1 / tail;
}

}  // namespace FD_SPACE
}  // namespace fastdiff
