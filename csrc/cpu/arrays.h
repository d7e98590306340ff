// Arrays of any dtype, a vector of them at a time, and sums in a fixed order.
#pragma once
#include "../params.h"
#include "pack.h"

namespace fastdiff {
namespace FD_LEVEL {

// Up to a vector's elements; lanes past them are 0.
template <class T> FD_SIMD Vector<T> load_lanes(const T* p, int n) {
  if constexpr (kLanes<T> == 1) return load(p);
  else return n == kLanes<T> ? load(p) : load_first(p, n);
}

template <class T> FD_SIMD void store_lanes(T* p, Vector<T> v, int n) {
  if constexpr (kLanes<T> == 1) store(p, v);
  else n == kLanes<T> ? store(p, v) : store_first(p, v, n);
}

// n <= kLanes values from index i on of an array of any dtype.
template <class S> struct Any;

template <> struct Any<float> {
  FD_INLINE static vfloat get(const void* base, int32_t dtype, int64_t i, int n) {
    if (dtype == kBF16 && n == kWidth) return load(static_cast<const bfloat16_t*>(base) + i);
    return dtype == kF32 ? load_lanes(static_cast<const float*>(base) + i, n) : converted(base, dtype, i, n);
  }
  FD_SHARED_CODE static vfloat converted(const void* base, int32_t dtype, int64_t i, int n) {
    if (dtype == kBF16) return load_lanes(static_cast<const bfloat16_t*>(base) + i, n);
    if (dtype == kF16) return load_lanes(static_cast<const half_t*>(base) + i, n);
    float lane[kWidth] = {};
    for (int k = 0; k < n; ++k) lane[k] = float(static_cast<const double*>(base)[i + k]);
    return load(lane);
  }
  FD_SHARED_CODE static void set(void* base, int32_t dtype, int64_t i, int n, vfloat v) {
    if (dtype == kF32) return store_lanes(static_cast<float*>(base) + i, v, n);
    if (dtype == kBF16) return store_lanes(static_cast<bfloat16_t*>(base) + i, v, n);
    if (dtype == kF16) return store_lanes(static_cast<half_t*>(base) + i, v, n);
    for (int k = 0; k < n; ++k) static_cast<double*>(base)[i + k] = v[k];
  }
};

template <> struct Any<double> {
  FD_SHARED_CODE static double get(const void* base, int32_t dtype, int64_t i, int) {
    if (dtype == kF32) return static_cast<const float*>(base)[i];
    if (dtype == kBF16) return to_float(static_cast<const bfloat16_t*>(base)[i]);
    if (dtype == kF16) return to_float(static_cast<const half_t*>(base)[i]);
    return static_cast<const double*>(base)[i];
  }
  FD_SHARED_CODE static void set(void* base, int32_t dtype, int64_t i, int, double v) {
    if (dtype == kF32) static_cast<float*>(base)[i] = float(v);
    else if (dtype == kBF16) static_cast<bfloat16_t*>(base)[i] = to_bfloat16(float(v));
    else if (dtype == kF16) static_cast<half_t*>(base)[i] = to_half(float(v));
    else static_cast<double*>(base)[i] = v;
  }
};

// body(i, lanes) over n channels, a vector at a time.
template <class T, class Body> FD_SIMD void each_vector(int64_t n, const Body& body) {
  for (int64_t i = 0; i < n; i += kLanes<T>) body(i, n - i < kLanes<T> ? int(n - i) : kLanes<T>);
}

// Sum of n scalars in a fixed order.
template <class S> static S sum_of(const S* p, int64_t n) {
  S total = 0;
  int64_t i = 0;
  if (n >= kLanes<S>) {
    Vector<S> lanes = load(p);
    for (i = kLanes<S>; i + kLanes<S> <= n; i += kLanes<S>) lanes += load(p + i);
    total = sum(lanes);
  }
  for (; i < n; ++i) total += p[i];
  return total;
}

// Lane j is the sum of vector j of kWidth in a row, neighbours added first.
FD_SIMD vfloat sum_rows(const float* p) {
  vfloat v[kWidth];
  FD_UNROLL
  for (int i = 0; i < kWidth; ++i) v[i] = load(p + i * kWidth);
  FD_UNROLL
  for (int n = kWidth / 2; n; n /= 2) {
    FD_UNROLL
    for (int i = 0; i < n; ++i) v[i] = add_pairs(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

FD_SIMD double sum_rows(const double* p) { return *p; }

// p[0..n) = v; up to a vector more is overwritten.
template <class S> FD_SIMD void fill(S* p, int64_t n, S v) {
  for (int64_t i = 0; i < n; i += kLanes<S>) store(p + i, broadcast(v));
}

FD_SIMD float first_lane(vfloat v) { return v[0]; }
FD_SIMD double first_lane(double v) { return v; }

// What rounding takes of a - b.
template <class V> FD_SIMD V rounded_off(V a, V b) {
  const V difference = a - b, subtracted = a - difference;
  return (a - (difference + subtracted)) + (subtracted - b);
}

// A gradient that is a sum over nothing.
FD_SIMD void clear(void* gradient, int64_t n, int32_t dtype) {
  if (gradient) memset(gradient, 0, n * dtype_size(dtype));
}

// n values of a plain type, not initialised; up to kOwn of them on the stack.
template <class V, int kOwn = 1> struct Scratch {
  V own[kOwn];
  V* const data;
  explicit Scratch(int64_t n) : data(n <= kOwn ? own : new V[n]) {}
  ~Scratch() {
    if (data != own) delete[] data;
  }
  Scratch(const Scratch&) = delete;
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
