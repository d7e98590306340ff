// Floats that a thread computes alike, for the formulas of step.h: what they ask of a row is asked once for all.
#pragma once
#include "../arithmetic.h"
#include "common.cuh"

namespace fastdiff {
namespace cuda {

template <int N>
struct Pack {
  float at[N];
};

// call(j) of every element.
template <int N, class Call>
FD_DEVICE Pack<N> packed(Call call) {
  Pack<N> values;
  FD_UNROLL
  for (int j = 0; j < N; ++j) values.at[j] = call(j);
  return values;
}

template <int N>
FD_DEVICE Pack<N> filled(float value) {
  const float v = put_off(value);
  return packed<N>([&](int) { return v; });
}

template <int N>
FD_DEVICE Pack<N> zero_like(const Pack<N>&) {
  return filled<N>(0.0f);
}

template <int N>
FD_DEVICE Pack<N> operator+(const Pack<N>& a, float b) {
  return packed<N>([&](int j) { return a.at[j] + b; });
}

template <int N>
FD_DEVICE Pack<N> operator-(const Pack<N>& a, const Pack<N>& b) {
  return packed<N>([&](int j) { return a.at[j] - b.at[j]; });
}

template <int N>
FD_DEVICE Pack<N> operator-(float a, const Pack<N>& b) {
  return packed<N>([&](int j) { return a - b.at[j]; });
}

template <int N>
FD_DEVICE Pack<N> operator*(const Pack<N>& a, const Pack<N>& b) {
  return packed<N>([&](int j) { return a.at[j] * b.at[j]; });
}

template <int N>
FD_DEVICE Pack<N> operator*(const Pack<N>& a, float b) {
  return packed<N>([&](int j) { return a.at[j] * b; });
}

template <int N>
FD_DEVICE Pack<N> madd(const Pack<N>& a, float b, const Pack<N>& c) {
  return packed<N>([&](int j) { return madd(a.at[j], b, c.at[j]); });
}

template <int N>
FD_DEVICE Pack<N> madd(const Pack<N>& a, const Pack<N>& b, const Pack<N>& c) {
  return packed<N>([&](int j) { return madd(a.at[j], b.at[j], c.at[j]); });
}

template <int N>
FD_DEVICE Pack<N> clip(const Pack<N>& v, float bound) {
  return packed<N>([&](int j) { return limited(v.at[j], bound); });
}

template <int N>
FD_DEVICE Pack<N> exp(const Pack<N>& v) {
  return packed<N>([&](int j) { return exp(v.at[j]); });
}

}  // namespace cuda
}  // namespace fastdiff
