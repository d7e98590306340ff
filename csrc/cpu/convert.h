// Elements of any dtype to and from Real, float or double: what the kernels compute in.
#pragma once
#include "simd.h"

namespace fastdiff {
namespace FD_LEVEL {

template <class Real>
struct Lanes;
template <>
struct Lanes<float> {
  typedef vfloat Value;
  static constexpr int kCount = kWidth;
};
template <>
struct Lanes<double> {
  typedef double Value;
  static constexpr int kCount = 1;
};

FD_SIMD double load(const double* p) { return *p; }
FD_SIMD void store(double* p, double v) { *p = v; }

template <class T>
FD_SIMD void to_reals(const T* from, int n, float* to) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
  if (i < n) store(to + i, load_first(from + i, n - i));
}

FD_SIMD void to_reals(const double* from, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = float(from[i]);
}

template <class T>
FD_SIMD void to_reals(const T* from, int n, double* to) {
  for (int i = 0; i < n; ++i) to[i] = to_float(from[i]);
}

FD_SIMD void to_reals(const double* from, int n, double* to) { memcpy(to, from, n * sizeof(double)); }

template <class T>
FD_SIMD void from_reals(const float* from, int n, T* to) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load(from + i), n - i);
}

FD_SIMD void from_reals(const float* from, int n, double* to) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}

// v to a float whose last bit says whether anything was cut off: rounding it once more is rounding v.
FD_SIMD float round_to_odd(double v) {
  const float nearest = float(v);
  if (double(nearest) == v || v != v || __builtin_isinf(nearest)) return nearest;
  const bool up = __builtin_fabs(double(nearest)) > __builtin_fabs(v);
  return bits_to_float((float_to_bits(nearest) - up) | 1u);
}

template <class T>
FD_SIMD void from_reals(const double* from, int n, T* to) {
  for (int i = 0; i < n; ++i) from_float(round_to_odd(from[i]), to[i]);
}

FD_SIMD void from_reals(const double* from, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = float(from[i]);
}

FD_SIMD void from_reals(const double* from, int n, double* to) { memcpy(to, from, n * sizeof(double)); }

template <class Real>
static inline void convert_in(const void* from, int32_t dtype, int n, Real* to) {
  switch (dtype) {
    case kF32: return to_reals(static_cast<const float*>(from), n, to);
    case kF16: return to_reals(static_cast<const half_t*>(from), n, to);
    case kBF16: return to_reals(static_cast<const bfloat16_t*>(from), n, to);
    case kF64: return to_reals(static_cast<const double*>(from), n, to);
    default: return to_reals(static_cast<const uint8_t*>(from), n, to);
  }
}

template <class Real>
static inline void convert_out(const Real* from, int32_t dtype, int n, void* to) {
  switch (dtype) {
    case kF32: return from_reals(from, n, static_cast<float*>(to));
    case kF16: return from_reals(from, n, static_cast<half_t*>(to));
    case kBF16: return from_reals(from, n, static_cast<bfloat16_t*>(to));
    default: return from_reals(from, n, static_cast<double*>(to));
  }
}

// n elements of a size, from and to positions a stride apart.
template <class Bits>
FD_SIMD void copy_strided(const void* from, int64_t from_stride, void* to, int64_t to_stride, int n) {
  for (int i = 0; i < n; ++i)
    memcpy(static_cast<Bits*>(to) + i * to_stride, static_cast<const Bits*>(from) + i * from_stride, sizeof(Bits));
}

static inline void copy_elements(int size, const void* from, int64_t from_stride, void* to, int64_t to_stride, int n) {
  switch (size) {
    case 1: return copy_strided<uint8_t>(from, from_stride, to, to_stride, n);
    case 2: return copy_strided<uint16_t>(from, from_stride, to, to_stride, n);
    case 4: return copy_strided<uint32_t>(from, from_stride, to, to_stride, n);
    default: return copy_strided<uint64_t>(from, from_stride, to, to_stride, n);
  }
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
