// Winograd's minimal filtering F(M x M, 3 x 3) in float, M 2 or 4: a tile of M x M outputs from (M + 2) x (M + 2) inputs.
//
//     Y = A^T [ (G g G^T) .* (B^T d B) ] A
//
// and, of the filter's gradient from that of Y, dg = G^T [ (B^T d B) .* (A dY A^T) ] G.
//
// The points are 0, +-1 and infinity for M = 2; 0, +-1/sqrt(2), +-sqrt(2) and infinity for M = 4, whose error is a quarter
// of that of the customary 0, +-1, +-2. Each row of G is scaled by a power of two, that of B by its inverse.
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016; the points after Barabasz et al.,
// "Error analysis and improving the accuracy of Winograd convolution for deep neural networks", 2020.
#pragma once
#include "simd.h"

namespace fastdiff {
namespace FD_LEVEL {

template <int M> struct Winograd;

template <> struct Winograd<2> {
  static constexpr int kTile = 4;

  // to = G from, one axis of a filter.
  template <class V> static inline __attribute__((always_inline)) void filter(const V* from, V* to) {
    const V even = (from[0] + from[2]) * 0.5, odd = from[1] * 0.5;
    to[0] = from[0], to[1] = even + odd, to[2] = even - odd, to[3] = from[2];
  }

  // to = B^T from, one axis of a tile of inputs.
  template <class V> static inline __attribute__((always_inline)) void input(const V* from, V* to) {
    to[0] = from[0] - from[2];
    to[1] = from[1] + from[2];
    to[2] = from[2] - from[1];
    to[3] = from[3] - from[1];
  }

  // to = A^T from, one axis of a tile of outputs.
  template <class V> static inline __attribute__((always_inline)) void output(const V* from, V* to) {
    to[0] = from[0] + (from[1] + from[2]);
    to[1] = (from[1] - from[2]) + from[3];
  }
};

template <> struct Winograd<4> {
  static constexpr int kTile = 6;
  static constexpr double kP = 0.70710678118654752440, kQ = 1.41421356237309504880;

  template <class V> static inline __attribute__((always_inline)) void filter(const V* from, V* to) {
    // 1 / prod(a - b) over the other points b is 1 at 0, -2/3 at +-1/sqrt(2) and 1/6 at +-sqrt(2), here doubled.
    const V p = from[0] + from[2] * 0.5, p_odd = from[1] * kP;
    const V q = from[0] + from[2] * 2.0, q_odd = from[1] * kQ;
    to[0] = from[0];
    to[1] = (p + p_odd) * (-2.0 / 3), to[2] = (p - p_odd) * (-2.0 / 3);
    to[3] = (q + q_odd) * (1.0 / 3), to[4] = (q - q_odd) * (1.0 / 3);
    to[5] = from[2];
  }

  template <class V> static inline __attribute__((always_inline)) void input(const V* from, V* to) {
    const V p_even = madd(from[2], -2.0f, from[4]), p_odd = madd(from[1], -2.0f, from[3]);
    const V q_even = madd(from[2], -0.5f, from[4]) * 0.5f, q_odd = madd(from[1], -0.5f, from[3]);
    to[0] = madd(from[2], -2.5f, from[0] + from[4]);
    to[1] = madd(p_odd, float(kP), p_even), to[2] = madd(p_odd, -float(kP), p_even);
    to[3] = madd(q_odd, float(kQ / 2), q_even), to[4] = madd(q_odd, -float(kQ / 2), q_even);
    to[5] = madd(from[3], -2.5f, from[1] + from[5]);
  }

  template <class V> static inline __attribute__((always_inline)) void output(const V* from, V* to) {
    const V p = from[1] + from[2], p_odd = from[1] - from[2];
    const V q = from[3] + from[4], q_odd = (from[3] - from[4]) * float(kQ);
    to[0] = from[0] + (p + q);
    to[1] = madd(p_odd, float(kP), q_odd);
    to[2] = madd(p, 0.5f, q + q);
    to[3] = madd(p_odd, float(kP / 2), madd(q_odd, 2.0f, from[5]));
  }

  // to = A from, one axis of a tile of the outputs' gradients.
  template <class V> static inline __attribute__((always_inline)) void output_gradient(const V* from, V* to) {
    const V p = madd(from[2], 0.5f, from[0]), p_odd = madd(from[3], 0.5f, from[1]);
    const V q = madd(from[2], 2.0f, from[0]), q_odd = madd(from[3], 2.0f, from[1]);
    to[0] = from[0];
    to[1] = madd(p_odd, float(kP), p), to[2] = madd(p_odd, -float(kP), p);
    to[3] = madd(q_odd, float(kQ), q), to[4] = madd(q_odd, -float(kQ), q);
    to[5] = from[3];
  }

  // to = G^T from, one axis of a filter's gradient.
  template <class V> static inline __attribute__((always_inline)) void filter_gradient(const V* from, V* to) {
    const V p = (from[1] + from[2]) * float(-2.0 / 3), p_odd = (from[1] - from[2]) * float(-2.0 / 3 * kP);
    const V q = (from[3] + from[4]) * float(1.0 / 3);
    to[0] = from[0] + (p + q);
    to[1] = madd(from[3] - from[4], float(kQ / 3), p_odd);
    to[2] = madd(p, 0.5f, madd(q, 2.0f, from[5]));
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
