// How an image is cut into Winograd's tiles, and what a tile of it is transformed to.
#pragma once
#include "product.h"
#include "winograd.h"

namespace fastdiff {
namespace FD_LEVEL {

// B^T d B of the tile of vectors d(i, j), its positions stored `stride` apart.
template <int M, class Inputs> FD_SIMD void transform_input(const Inputs& d, float* v, int64_t stride) {
  constexpr int kTile = M + 2;
  vfloat t[kTile][kTile];
  FD_UNROLL
  for (int i = 0; i < kTile; ++i) {
    vfloat row[kTile];
    FD_UNROLL
    for (int j = 0; j < kTile; ++j) row[j] = d(i, j);
    Winograd<M>::input(row, t[i]);
  }
  FD_UNROLL
  for (int j = 0; j < kTile; ++j) {
    vfloat column[kTile], out[kTile];
    FD_UNROLL
    for (int i = 0; i < kTile; ++i) column[i] = t[i][j];
    Winograd<M>::input(column, out);
    FD_UNROLL
    for (int i = 0; i < kTile; ++i) store(v + (i * kTile + j) * stride, out[i]);
  }
}

struct Place { int64_t b, y, x; };   // of a tile's first output

template <int M> struct Grid {
  static constexpr int kTile = M + 2;
  const int64_t H, W, rows, columns;   // of pixels, of tiles

  Grid(int64_t height, int64_t width) : H(height), W(width), rows((H + M - 1) / M), columns((W + M - 1) / M) {}

  Place place(int64_t tile) const { return {tile / (rows * columns), tile / columns % rows * M, tile % columns * M}; }

  // Whether all inputs of the tile lie inside the image.
  bool whole(Place at) const { return at.y >= 1 && at.x >= 1 && at.y + M + 1 <= H && at.x + M + 1 <= W; }

  // B^T d B of one tile's vector of channels of x [B, H, W, C] from c on, its positions stored `stride` apart.
  template <bool kWhole, class T>
  FD_INLINE void input(const T* x, int64_t C, Place at, int64_t c, float* v, int64_t stride) const {
    const int n = C - c < kWidth ? int(C - c) : kWidth;
    const T* first = x + ((at.b * H + at.y - 1) * W + at.x - 1) * C + c;
    transform_input<M>([&](int i, int j) FD_INLINE {
      const bool inside = at.y + i >= 1 && at.y + i <= H && at.x + j >= 1 && at.x + j <= W;
      return kWhole || inside ? load_some(first + (i * W + j) * C, n) : vfloat{};
    }, v, stride);
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
