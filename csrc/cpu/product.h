// The matrix product of the convolutions: rows of inputs by panels of packed filters.
#pragma once
#include "simd.h"

namespace fastdiff {
namespace FD_LEVEL {

constexpr int kPanel = 2 * kWidth;                 // columns of the packed filters that lie together: those of a core
constexpr int kTileRows = kWidth == 16 ? 12 : 6;   // rows of a core

FD_SIMD int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of a block, whole cores and at most `most`, so that n rows keep all threads as long.
FD_SIMD int64_t even_block(int64_t n, int64_t most, int threads) {
  const int64_t blocks = (n + threads * most - 1) / (threads * most) * threads;
  return rounded_up((n + blocks - 1) / blocks, kTileRows);
}

// The first n elements, n <= kWidth, other lanes 0.
template <class T> FD_SIMD vfloat load_some(const T* from, int n) {
  return n == kWidth ? load(from) : load_first(from, n);
}

// What one step of a sum takes of a row of inputs, E, and how it is multiplied with as much of the filters, 32 bits each.
template <class E> struct Step;

template <> struct Step<float> {
  static constexpr int kElements = 1;
  static FD_INLINE vfloat of(const float* v) { return set1(*v); }
  static FD_INLINE vfloat add(vfloat a, vfloat u, vfloat total) { return madd(a, u, total); }
};

#if defined(__AVX512BF16__)
// A pair, whose products are exact; numbers below 2^-126 count as 0.
template <> struct Step<bfloat16_t> {
  static constexpr int kElements = 2;
  static FD_INLINE vfloat of(const bfloat16_t* v) {
    float pair;
    memcpy(&pair, v, sizeof pair);
    return (vfloat)_mm512_set1_ps(pair);
  }
  static FD_INLINE vfloat add(vfloat a, vfloat u, vfloat total) {
    return (vfloat)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)u);
  }
};
#endif

// What a core asks for while it works: one place for each step, `distance` bytes apart.
struct Ahead {
  const void* place;
  int64_t distance;
};

// m [kRows, 2 vectors] = v [kRows, steps] u [steps, 2 vectors].
template <int kRows, class E>
static void product_core(const E* v, int64_t v_stride, const float* u, int64_t steps, float* m, int64_t m_stride,
                         Ahead ahead) {
  vfloat total[kRows][2] = {};
  for (int64_t s = 0; s < steps; ++s) {
    const char* place = static_cast<const char*>(ahead.place) + s * ahead.distance;
    FD_UNROLL
    for (int line = 0; line < kPanel; line += 16) __builtin_prefetch(place + 4 * line, 0, 2);
    const vfloat left = load(u + s * kPanel), right = load(u + s * kPanel + kWidth);
    FD_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const vfloat a = Step<E>::of(v + r * v_stride + s * Step<E>::kElements);
      total[r][0] = Step<E>::add(a, left, total[r][0]);
      total[r][1] = Step<E>::add(a, right, total[r][1]);
    }
  }
  FD_UNROLL
  for (int r = 0; r < kRows; ++r) {
    store(m + r * m_stride, total[r][0]);
    store(m + r * m_stride + kWidth, total[r][1]);
  }
}

// The core of `rows` rows, 1 to kRows of them.
template <int kRows, class E>
static void product_rows(int64_t rows, const E* v, int64_t v_stride, const float* u, int64_t steps, float* m,
                         int64_t m_stride, Ahead ahead) {
  if constexpr (kRows > 1)
    if (rows < kRows) return product_rows<kRows - 1>(rows, v, v_stride, u, steps, m, m_stride, ahead);
  product_core<kRows>(v, v_stride, u, steps, m, m_stride, ahead);
}

// m [n, 2 vectors] = v [n, steps] u [steps, 2 vectors]; `next` is the panel that will be read after u.
template <class E>
FD_SIMD void product(int64_t n, const E* v, int64_t v_stride, const float* u, const float* next, int64_t steps, float* m,
                     int64_t m_stride) {
  for (int64_t r = 0; r < n; r += kTileRows) {
    const E* rows = v + r * v_stride;
    const bool last = n - r <= kTileRows;
    const Ahead ahead = last ? Ahead{next, kPanel * 4} : Ahead{rows + kTileRows * v_stride, kTileRows * 4};
    product_rows<kTileRows>(n - r, rows, v_stride, u, steps, m + r * m_stride, m_stride, ahead);
  }
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
