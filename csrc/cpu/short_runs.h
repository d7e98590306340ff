// Channels of kPer vectors each, 1 or 2, and their terms: as many of them worked on together as four vectors are.
#pragma once
#include "pack.h"

namespace fastdiff {
namespace FD_LEVEL {

template <int n> struct Size { static constexpr int value = n; };

// body(j, M) for n such channels, M vectors at a time.
template <int kPer, class Body> FD_SIMD void each_four(int64_t n, const Body& body) {
  constexpr int kMany = 4 / kPer;
  int64_t j = 0;
  for (; j + kMany <= n; j += kMany) body(j, Size<4>());
  for (; j < n; ++j) body(j, Size<kPer>());
}

// A term of each channel, for each of its vectors.
template <class T, int M, int kPer> FD_SIMD PackOf<T, M> each(const Scalar<T>* terms) {
  PackOf<T, M> r;
  FD_UNROLL
  for (int m = 0; m < M; ++m) r.v[m] = broadcast(terms[m / kPer]);
  return r;
}

// Their vectors, which lie `stride` elements of any dtype apart from channel to channel.
template <int kPer> FD_SIMD int64_t vector_at(int m, int64_t stride, int lanes) {
  return m / kPer * stride + m % kPer * lanes;
}

template <class T, int M, int kPer, class From> FD_SIMD PackOf<T, M> vectors(const From* run, int64_t stride) {
  PackOf<T, M> r;
  FD_UNROLL
  for (int m = 0; m < M; ++m) r.v[m] = load(run + vector_at<kPer>(m, stride, kLanes<T>));
  return r;
}

template <int kPer, class To, class V, int M> FD_SIMD void set_vectors(To* run, Pack<V, M> v, int64_t stride) {
  FD_UNROLL
  for (int m = 0; m < M; ++m) store(run + vector_at<kPer>(m, stride, kLanes<To>), v.v[m]);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
