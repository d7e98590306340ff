// The matrix product of the convolutions: rows of inputs by panels of packed filters.
#pragma once
#include "simd.h"

namespace fastdiff {
namespace FD_LEVEL {

constexpr int kPanel = 2 * kWidth;                 // columns of the packed filters that lie together: those of a core
constexpr int kTileRows = kWidth == 16 ? 12 : 6;   // rows of a core

FD_SIMD int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The first n elements, n <= kWidth, other lanes 0.
template <class T> FD_SIMD vfloat load_some(const T* from, int n) {
  return n == kWidth ? load(from) : load_first(from, n);
}

// What a core asks for while it works: one place for each c, `step` floats apart.
struct Ahead {
  const float* place;
  int64_t step;
};

// m [kRows, 2 vectors] = v [kRows, C] u [C, 2 vectors].
template <int kRows>
static void product_core(const float* v, int64_t v_stride, const float* u, int64_t C, float* m, int64_t m_stride,
                         Ahead ahead) {
  vfloat total[kRows][2] = {};
  for (int64_t c = 0; c < C; ++c) {
    __builtin_prefetch(ahead.place + c * ahead.step, 0, 2);
    const vfloat left = load(u + c * kPanel), right = load(u + c * kPanel + kWidth);
    FD_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const vfloat a = set1(v[r * v_stride + c]);
      total[r][0] = madd(a, left, total[r][0]);
      total[r][1] = madd(a, right, total[r][1]);
    }
  }
  FD_UNROLL
  for (int r = 0; r < kRows; ++r) {
    store(m + r * m_stride, total[r][0]);
    store(m + r * m_stride + kWidth, total[r][1]);
  }
}

// The core of `rows` rows, 1 to kRows of them.
template <int kRows>
static void product_rows(int64_t rows, const float* v, int64_t v_stride, const float* u, int64_t C, float* m,
                         int64_t m_stride, Ahead ahead) {
  if constexpr (kRows > 1)
    if (rows < kRows) return product_rows<kRows - 1>(rows, v, v_stride, u, C, m, m_stride, ahead);
  product_core<kRows>(v, v_stride, u, C, m, m_stride, ahead);
}

// m [n, 2 vectors] = v [n, C] u [C, 2 vectors]; `next` is the panel that will be read after u.
FD_SIMD void product(int64_t n, const float* v, int64_t v_stride, const float* u, const float* next, int64_t C, float* m,
                     int64_t m_stride) {
  for (int64_t r = 0; r < n; r += kTileRows) {
    const float* rows = v + r * v_stride;
    const bool last = n - r <= kTileRows;
    const Ahead ahead = last ? Ahead{next, kPanel} : Ahead{rows + kTileRows * v_stride, kTileRows};
    product_rows<kTileRows>(n - r, rows, v_stride, u, C, m + r * m_stride, m_stride, ahead);
  }
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
