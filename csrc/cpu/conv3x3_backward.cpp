// The weight's gradient of a 3x3 convolution of stride 1 and padding 1, channels last, by Winograd's minimal filtering:
//
//     dg [O, C] = G^T ( sum over tiles of (A dY A^T) .* (B^T x B) ) G
//
// A block's tiles are transformed to V [P, tiles, C] and W [P, tiles, O]; each of the P positions adds the matrix product
// W^T V to its U [O, C], and U is transformed at the end. Every U is one sum over the tiles in their order, and the blocks
// depend on the shape alone, so that threads change no bit.
#include "../arithmetic.h"
#include "arrays.h"
#include "kernels.h"
#include "parallel.h"
#include "winograd_grid.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kBlock = 2 << 20;   // floats of V and W in a block
constexpr int64_t kDepth = 128;       // tiles of a product's core: its columns of V and W stay in the first-level cache
constexpr int64_t kStrip = 48;        // rows of U, a multiple of kTileRows, that a thread takes at a time

// u [kRows, 2 vectors] += w [depth, kRows]^T v [depth, 2 vectors].
template <int kRows>
void add_core(const float* w, int64_t w_stride, const float* v, int64_t v_stride, int64_t depth, float* u, int64_t u_stride) {
  vfloat total[kRows][2];
  FD_UNROLL
  for (int r = 0; r < kRows; ++r)
    total[r][0] = load(u + r * u_stride), total[r][1] = load(u + r * u_stride + kWidth);
  for (int64_t k = 0; k < depth; ++k) {
    const vfloat left = load(v + k * v_stride), right = load(v + k * v_stride + kWidth);
    FD_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const vfloat a = set1(w[k * w_stride + r]);
      total[r][0] = madd(a, left, total[r][0]);
      total[r][1] = madd(a, right, total[r][1]);
    }
  }
  FD_UNROLL
  for (int r = 0; r < kRows; ++r)
    store(u + r * u_stride, total[r][0]), store(u + r * u_stride + kWidth, total[r][1]);
}

template <class T> struct FilterGradient {
  static constexpr int M = 4, kTile = M + 2, kPositions = kTile * kTile;

  const Conv3x3BackwardParams& p;
  const Grid<M> grid;
  int64_t tiles, padded_C, padded_O, block;

  explicit FilterGradient(const Conv3x3BackwardParams& params)
      : p(params), grid(p.H, p.W), tiles(p.B * grid.rows * grid.columns),
        padded_C(rounded_up(p.C, 2 * kWidth)), padded_O(rounded_up(rounded_up(p.O, kTileRows), kWidth)) {
    block = kBlock / (kPositions * (padded_C + padded_O)) / kDepth * kDepth;
    block = block < kDepth ? kDepth : block;
    block = block < tiles ? block : tiles;
  }

  // Floats between two positions of V, of W; the vector more keeps them out of each other's cache sets.
  int64_t v_stride() const { return block * padded_C + kWidth; }
  int64_t w_stride() const { return block * padded_O + kWidth; }

  template <bool kWhole> void inputs_of(Place at, float* v) const {
    for (int64_t c = 0; c < padded_C; c += kWidth) {
      if (c < p.C) grid.template input<kWhole>(static_cast<const T*>(p.x), p.C, at, c, v + c, v_stride());
      else for (int i = 0; i < kPositions; ++i) store(v + i * v_stride() + c, vfloat{});
    }
  }

  // A dY A^T of one tile's vector of outputs from o on; what lies outside is 0.
  FD_INLINE void output_vector(Place at, int64_t o, float* w) const {
    const int n = o >= p.O ? 0 : p.O - o < kWidth ? int(p.O - o) : kWidth;
    const T* first = static_cast<const T*>(p.grad_y) + ((at.b * p.H + at.y) * p.W + at.x) * p.O + o;
    vfloat d[M][M], t[M][kTile];
    FD_UNROLL
    for (int i = 0; i < M; ++i) {
      FD_UNROLL
      for (int j = 0; j < M; ++j)
        d[i][j] = n && at.y + i < p.H && at.x + j < p.W ? load_some(first + (i * p.W + j) * p.O, n) : vfloat{};
      Winograd<M>::output_gradient(d[i], t[i]);
    }
    FD_UNROLL
    for (int j = 0; j < kTile; ++j) {
      vfloat column[M], out[kTile];
      FD_UNROLL
      for (int i = 0; i < M; ++i) column[i] = t[i][j];
      Winograd<M>::output_gradient(column, out);
      FD_UNROLL
      for (int i = 0; i < kTile; ++i) store(w + (i * kTile + j) * w_stride(), out[i]);
    }
  }

  void transform(int64_t tile, float* v, float* w) const {
    const Place at = grid.place(tile);
    grid.whole(at) ? inputs_of<true>(at, v) : inputs_of<false>(at, v);
    for (int64_t o = 0; o < padded_O; o += kWidth) output_vector(at, o, w + o);
  }

  // The rows [o, end) of one position's U, of n tiles.
  void add(const float* v, const float* w, int64_t n, int64_t o, int64_t end, float* u) const {
    for (int64_t k = 0; k < n; k += kDepth)
      for (int64_t row = o; row < end; row += kTileRows)
        for (int64_t c = 0; c < padded_C; c += 2 * kWidth)
          add_core<kTileRows>(w + k * padded_O + row, padded_O, v + k * padded_C + c, padded_C, n - k < kDepth ? n - k : kDepth,
                              u + row * padded_C + c, padded_C);
  }

  // One row of U, `stride` floats between its positions, to grad_weight [O, 3, 3, C].
  void finish(int64_t o, const float* u, int64_t stride) const {
    for (int64_t c = 0; c < p.C; c += kWidth) {
      const int n = p.C - c < kWidth ? int(p.C - c) : kWidth;
      vfloat t[3][kTile], taps[3];
      FD_UNROLL
      for (int j = 0; j < kTile; ++j) {
        vfloat column[kTile], out[3];
        FD_UNROLL
        for (int i = 0; i < kTile; ++i) column[i] = load(u + (i * kTile + j) * stride + c);
        Winograd<M>::filter_gradient(column, out);
        FD_UNROLL
        for (int i = 0; i < 3; ++i) t[i][j] = out[i];
      }
      FD_UNROLL
      for (int i = 0; i < 3; ++i) {
        Winograd<M>::filter_gradient(t[i], taps);
        FD_UNROLL
        for (int j = 0; j < 3; ++j) {
          float* to = p.grad_weight + (o * 9 + 3 * i + j) * p.C + c;
          n == kWidth ? store(to, taps[j]) : store_first(to, taps[j], n);
        }
      }
    }
  }

  void run() const {
    const int threads = useful_threads(tiles * kPositions * p.O, p.num_threads);
    const int64_t u_stride = padded_O * padded_C + kWidth, strips = (p.O + kStrip - 1) / kStrip;
    Scratch<float> v(kPositions * v_stride()), w(kPositions * w_stride()), u(kPositions * u_stride);
    parallel_for(kPositions, threads, [&](int64_t i) { memset(u.data + i * u_stride, 0, u_stride * sizeof(float)); });
    for (int64_t first = 0; first < tiles; first += block) {
      const int64_t n = tiles - first < block ? tiles - first : block;
      parallel_for(n, threads, [&](int64_t k) { transform(first + k, v.data + k * padded_C, w.data + k * padded_O); });
      parallel_for(kPositions * strips, threads, [&](int64_t i) {
        const int64_t position = i / strips, o = i % strips * kStrip, end = o + kStrip < p.O ? o + kStrip : p.O;
        add(v.data + position * v_stride(), w.data + position * w_stride(), n, o, end, u.data + position * u_stride);
      });
    }
    parallel_for(p.O, threads, [&](int64_t o) { finish(o, u.data + o * padded_C, u_stride); });
  }
};

}  // namespace

Status conv3x3_backward(const Conv3x3BackwardParams& p) {
  switch (p.dtype) {
    case kF32: return FilterGradient<float>(p).run(), Status{};
    case kF16: return FilterGradient<half_t>(p).run(), Status{};
    case kBF16: return FilterGradient<bfloat16_t>(p).run(), Status{};
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
