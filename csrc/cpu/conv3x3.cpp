// A 3x3 convolution of stride 1 and padding 1, channels last, by Winograd's minimal filtering.
//
// Tiles are taken in blocks. A block's inputs, normalised a few rows at a time, are transformed to V [P, tiles, C], one
// matrix for each of the P positions in a tile; its products with the filters, M [P, tiles, columns], are made for some
// columns of outputs at a time, so that V and M stay in the second-level cache; and these are transformed to outputs.
// Every output is one sum over c = 0..C-1 in that order, whatever the blocks and threads.
#include "../arithmetic.h"
#include "arrays.h"
#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "product.h"
#include "silu.h"
#include "winograd_grid.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

// Floats of V and of M in a block. An AMD EPYC without AVX-512 was up to 2.3 times as fast with many of them, which read the
// filters of many channels less often; one with it is as fast from 192 << 10 to 512 << 10.
constexpr int64_t kInputs = kWidth == 16 ? 384 << 10 : 1024 << 10, kProducts = kWidth == 16 ? 64 << 10 : 128 << 10;
constexpr int64_t kMost = 96;   // tiles of a block

// Rows of silu((x - center) * slope + shift), where slope and shift hold silu's factor, as one row of tiles after the
// other needs them, with the zeros around the image: each pixel is normalised once, not for each tile that it is in.
template <class T, int M> struct Band {
  static constexpr int kTile = M + 2;

  const Conv3x3Params& p;
  const Grid<M>& grid;
  const int64_t padded_C, pitch;        // floats of a row
  Scratch<float> rows;                  // [kTile, pitch], row y at (y + 1) % kTile
  int64_t b = -1, y = 0;                // of the row of tiles that is ready
  const float* line[kTile] = {};        // its rows

  Band(const Conv3x3Params& params, const Grid<M>& tiles)
      : p(params), grid(tiles), padded_C(rounded_up(p.C, kWidth)), pitch((grid.columns * M + 2) * padded_C),
        rows(kTile * pitch) {}

  void fill(int64_t row, const float* terms) {
    float* to = rows.data + (row + 1) % kTile * pitch;
    if (row < 0 || row >= p.H) return (void)memset(to, 0, pitch * sizeof(float));
    memset(to, 0, padded_C * sizeof(float));
    memset(to + (p.W + 1) * padded_C, 0, (pitch - (p.W + 1) * padded_C) * sizeof(float));
    const T* from = static_cast<const T*>(p.x) + (b * p.H + row) * p.W * p.C;
    for (int64_t x = 0; x < p.W; ++x, from += p.C) {
      to += padded_C;
      p.silu ? normalise<true>(from, terms, to) : normalise<false>(from, terms, to);
    }
  }

  template <bool kSilu> void normalise(const T* from, const float* terms, float* to) const {
    for (int64_t c = 0; c < p.C; c += kWidth) {
      const vfloat x = load_some(from + c, p.C - c < kWidth ? int(p.C - c) : kWidth);
      const float* t = terms + c;
      const Pack<vfloat, 1> h = {{madd(x - load(t), load(t + padded_C), load(t + 2 * padded_C))}};
      store(to + c, kSilu ? silu<kDegree<T>>(h).v[0] : h.v[0]);
    }
  }

  // Makes the row of tiles of `at` ready; terms [B, 3, padded C]: center, slope, shift.
  void at(Place at, const float* terms) {
    if (at.b == b && at.y == y) return;
    const int64_t kept = at.b == b && at.y == y + M ? 2 : 0;
    b = at.b, y = at.y;
    for (int64_t i = kept; i < kTile; ++i) fill(y - 1 + i, terms + b * 3 * padded_C);
    for (int64_t i = 0; i < kTile; ++i) line[i] = rows.data + (y + i) % kTile * pitch;
  }
};

template <class T, int M> struct Convolution {
  static constexpr int kTile = M + 2, kPositions = kTile * kTile;

  const Conv3x3Params& p;
  const float* terms;       // [B, 3, padded C]: center, slope, shift; NULL: no prologue
  const Grid<M> grid;
  const int64_t tiles;
  const int threads;
  int64_t padded_C, padded_O, block, chunk;

  Convolution(const Conv3x3Params& params, const float* prologue)
      : p(params), terms(prologue), grid(p.H, p.W), tiles(p.B * grid.rows * grid.columns),
        threads(useful_threads(tiles * kPositions * p.O, p.num_threads)) {
    padded_C = rounded_up(p.C, kWidth), padded_O = rounded_up(p.O, kPanel);
    block = kInputs / (kPositions * padded_C) / kTileRows * kTileRows;
    block = block < kTileRows ? kTileRows : block > kMost ? kMost : block;
    if (blocks() >= threads) block = even_block(tiles, block, threads);
    chunk = kProducts / (kPositions * (tiles < block ? tiles : block)) / kPanel * kPanel;
    chunk = chunk < kPanel ? kPanel : chunk > padded_O ? padded_O : chunk;
  }

  int64_t blocks() const { return (tiles + block - 1) / block; }

  // Floats between two positions of V and of M; the vector more keeps them out of each other's cache sets.
  int64_t input_stride(int64_t n) const { return n * padded_C + kWidth; }
  int64_t product_stride(int64_t n) const { return n * chunk + kWidth; }

  template <bool kWhole> void input_tile(Place at, float* v, int64_t stride) const {
    for (int64_t c = 0; c < p.C; c += kWidth)
      grid.template input<kWhole>(static_cast<const T*>(p.x), p.C, at, c, v + c, stride);
  }

  void normalised_tile(const Band<T, M>& band, Place at, float* v, int64_t stride) const {
    for (int64_t c = 0; c < p.C; c += kWidth)
      transform_input<M>([&](int i, int j) FD_INLINE { return load(band.line[i] + (at.x + j) * padded_C + c); }, v + c,
                         stride);
  }

  // V of the tiles [first, first + n).
  void transform_inputs(int64_t first, int64_t n, float* v, int64_t stride) const {
    if (!terms) {
      for (int64_t k = 0; k < n; ++k) {
        const Place at = grid.place(first + k);
        grid.whole(at) ? input_tile<true>(at, v + k * padded_C, stride) : input_tile<false>(at, v + k * padded_C, stride);
      }
      return;
    }
    Band<T, M> band(p, grid);
    for (int64_t k = 0; k < n; ++k) {
      const Place at = grid.place(first + k);
      band.at(at, terms);
      normalised_tile(band, at, v + k * padded_C, stride);
    }
  }

  // M of `n` tiles and the columns [o, o + width).
  void multiply(const float* v, int64_t n, int64_t o, int64_t width, float* m) const {
    const float* filters = p.filters + o * p.C;
    for (int position = 0; position < kPositions; ++position, filters += padded_O * p.C)
      for (int64_t j = 0; j < width; j += kPanel) {
        const float* u = filters + j * p.C;
        const float* next = j + kPanel < width ? u + kPanel * p.C : filters + padded_O * p.C;
        product(n, v + position * input_stride(n), padded_C, u, next, p.C, m + position * product_stride(n) + j, chunk);
      }
  }

  // One tile's vector of outputs from o on, whose products lie at m, `stride` apart.
  FD_INLINE void output_vector(Place at, int64_t o, const float* m, int64_t stride) const {
    const int n = p.O - o < kWidth ? int(p.O - o) : kWidth;
    vfloat t[M][kTile], y[M][M];
    FD_UNROLL
    for (int j = 0; j < kTile; ++j) {
      vfloat column[kTile], out[M];
      FD_UNROLL
      for (int i = 0; i < kTile; ++i) column[i] = load(m + (i * kTile + j) * stride);
      Winograd<M>::output(column, out);
      FD_UNROLL
      for (int i = 0; i < M; ++i) t[i][j] = out[i];
    }
    vfloat constant = p.bias ? load_some(p.bias + o, n) : vfloat{};
    if (p.add) constant += load_some(p.add + at.b * p.add_stride + o, n);
    FD_UNROLL
    for (int i = 0; i < M; ++i) {
      Winograd<M>::output(t[i], y[i]);
      if (at.y + i >= p.H) return;
      FD_UNROLL
      for (int j = 0; j < M; ++j) {
        if (at.x + j >= p.W) break;
        const int64_t offset = ((at.b * p.H + at.y + i) * p.W + at.x + j) * p.O + o;
        vfloat v = y[i][j] + constant;
        if (p.residual) v += load_some(static_cast<const T*>(p.residual) + offset, n);
        T* to = static_cast<T*>(p.y) + offset;
        n == kWidth ? store(to, v) : store_first(to, v, n);
      }
    }
  }

  // Asks for the places of one tile's vector of outputs, which are far away and apart.
  FD_INLINE void ask_for(Place at, int64_t o) const {
    FD_UNROLL
    for (int i = 0; i < M; ++i)
      FD_UNROLL
      for (int j = 0; j < M; ++j) {
        const int64_t offset = ((at.b * p.H + at.y + i) * p.W + at.x + j) * p.O + o;
        __builtin_prefetch(static_cast<T*>(p.y) + offset, 1, 2);
        if (p.residual) __builtin_prefetch(static_cast<const T*>(p.residual) + offset, 0, 2);
      }
  }

  void transform_output(int64_t first, int64_t n, int64_t o, int64_t width, const float* m) const {
    for (int64_t k = 0; k < n; ++k) {
      const Place at = grid.place(first + k), next = grid.place(first + k + 1);
      for (int64_t j = 0; j < width && o + j < p.O; j += kWidth) ask_for(next, o + j);
      for (int64_t j = 0; j < width && o + j < p.O; j += kWidth) output_vector(at, o + j, m + k * chunk + j, product_stride(n));
    }
  }

  // The outputs [o, o + width) of n tiles.
  void outputs(int64_t first, int64_t n, int64_t o, const float* v, float* m) const {
    const int64_t rest = rounded_up(p.O - o, 2 * kWidth), width = rest < chunk ? rest : chunk;
    multiply(v, n, o, width, m);
    transform_output(first, n, o, width, m);
  }

  void block_of(int64_t first) const {
    const int64_t n = tiles - first < block ? tiles - first : block;
    Scratch<float> v(kPositions * input_stride(n)), m(kPositions * product_stride(n));
    transform_inputs(first, n, v.data, input_stride(n));
    for (int64_t o = 0; o < padded_O; o += chunk) outputs(first, n, o, v.data, m.data);
  }

  // Where there are fewer blocks than threads: all tiles in one, rows of tiles shared out first and then columns.
  void together() {
    chunk = rounded_up((padded_O + threads - 1) / threads, kPanel);
    chunk = chunk < padded_O ? chunk : padded_O;
    Scratch<float> v(kPositions * input_stride(tiles));
    parallel_for(p.B * grid.rows, threads, [&](int64_t row) {
      const int64_t first = row * grid.columns;
      transform_inputs(first, grid.columns, v.data + first * padded_C, input_stride(tiles));
    });
    parallel_for((padded_O + chunk - 1) / chunk, threads, [&](int64_t i) {
      Scratch<float> m(kPositions * product_stride(tiles));
      outputs(0, tiles, i * chunk, v.data, m.data);
    });
  }

  void run() {
    if (blocks() < threads) return together();
    parallel_for(blocks(), threads, [&](int64_t i) { block_of(i * block); });
  }
};

// ---- The prologue's statistics ----

// Sums over rows of x, `pitch` apart, of x - pivot and of its square, [C] each, in pieces so that float keeps its digits.
template <class T>
void column_sums(const T* x, int64_t rows, int64_t pitch, int64_t C, const float* pivot, float* sums, float* squares) {
  constexpr int64_t kPiece = 64;
  for (int64_t c = 0; c < C; c += kWidth) {
    const int n = C - c < kWidth ? int(C - c) : kWidth;
    const vfloat center = load(pivot + c);
    vfloat sum = {}, square = {};
    for (int64_t begin = 0; begin < rows; begin += kPiece) {
      vfloat s = {}, q = {};
      for (int64_t i = begin; i < rows && i < begin + kPiece; ++i) {
        const vfloat d = load_some(x + i * pitch + c, n) - center;
        s += d, q = madd(d, d, q);
      }
      sum += s, square += q;
    }
    store(sums + c, sum), store(squares + c, square);
  }
}

// center, slope and shift of the channels [c0, c1) of sample b, whole groups: GroupNorm, then * (1 + scale) + shift.
template <class T>
void prologue_terms(const Conv3x3Params& p, int64_t b, int64_t c0, int64_t c1, int64_t padded_C, float* terms) {
  const int64_t S = p.H * p.W, D = p.C / p.groups, C = c1 - c0;
  const T* x = static_cast<const T*>(p.x) + b * S * p.C + c0;
  float *center = terms, *slope = terms + padded_C, *shift = terms + 2 * padded_C;
  Scratch<float> sums(rounded_up(C, kWidth)), squares(rounded_up(C, kWidth));
  for (int64_t c = c0; c < (c1 < p.C ? c1 : padded_C); ++c) center[c] = slope[c] = shift[c] = 0;
  // The mean of some rows, a 16th of them at least, and so within 4 deviations of that of all; then the rest of it and
  // the variance about it.
  const int64_t step = S < 1024 ? (S + 63) / 64 : 16, some = (S + step - 1) / step;
  column_sums(x, some, step * p.C, C, center + c0, sums.data, squares.data);
  for (int64_t c = c0; c < c1; c += D) {
    const float mean = float(double(sum_of(sums.data + c - c0, D)) / double(some * D));
    for (int64_t i = c; i < c + D; ++i) center[i] = mean;
  }
  column_sums(x, S, p.C, C, center + c0, sums.data, squares.data);
  for (int64_t c = c0; c < c1; c += D) {
    const double rest = double(sum_of(sums.data + c - c0, D)) / double(S * D);
    const double variance = double(sum_of(squares.data + c - c0, D)) / double(S * D) - rest * rest;
    const double rstd = 1 / __builtin_sqrt((variance < 0 ? 0 : variance) + p.eps);  // NaN stays
    for (int64_t i = c; i < c + D; ++i) {
      const double film = p.scale ? 1 + double(p.scale[b * p.scale_stride + i]) : 1;
      const double factor = p.silu ? kFactor<float> : 1;
      const double gain = factor * film * (p.norm_weight ? p.norm_weight[i] : 1);
      slope[i] = float(rstd * gain);
      const double offset = (p.norm_bias ? p.norm_bias[i] : 0) * film + (p.shift ? p.shift[b * p.shift_stride + i] : 0);
      shift[i] = float(factor * offset - rest * rstd * gain);
    }
  }
}

// The terms of every sample; the channels of few samples are shared out, in whole groups.
template <class T> void prologue(const Conv3x3Params& p, int64_t padded_C, float* terms) {
  const int threads = useful_threads(p.B * p.H * p.W * p.C, p.num_threads);
  const int64_t share = p.B < threads ? (p.C + threads - 1) / threads : p.C;
  const int64_t width = rounded_up(share, p.C / p.groups), parts = (p.C + width - 1) / width;
  parallel_for(p.B * parts, threads, [&](int64_t i) {
    const int64_t b = i / parts, c0 = i % parts * width, c1 = c0 + width < p.C ? c0 + width : p.C;
    prologue_terms<T>(p, b, c0, c1, padded_C, terms + b * 3 * padded_C);
  });
}

template <class T, int M> Status convolve(const Conv3x3Params& p) {
  const int64_t padded_C = rounded_up(p.C, kWidth);
  Scratch<float> terms(p.groups ? p.B * 3 * padded_C : 0);
  if (p.groups) prologue<T>(p, padded_C, terms.data);
  Convolution<T, M>(p, p.groups ? terms.data : nullptr).run();
  return {};
}

template <class T> Status convolve(const Conv3x3Params& p) {
  return p.tile == 4 ? convolve<T, 4>(p) : convolve<T, 2>(p);
}

// packed [P, padded O / panel, C, panel] of the weight; columns beyond O are 0.
template <int M> struct Packing {
  static constexpr int kTile = M + 2;
  typedef double vdouble __attribute__((vector_size(8 * kWidth)));
  const Conv3x3PackParams& p;

  // One tap of the outputs [o, o + n).
  FD_INLINE vdouble tap(const float* weight, int n) const {
    float lanes[kWidth] = {};
    for (int k = 0; k < n; ++k) lanes[k] = weight[k * p.o_stride];
    return __builtin_convertvector(load(lanes), vdouble);
  }

  FD_INLINE void vector(int64_t o, int64_t c, float* to) const {
    const int n = o >= p.O ? 0 : p.O - o < kWidth ? int(p.O - o) : kWidth;
    const float* weight = p.weight + o * p.o_stride + c * p.c_stride;
    vdouble rows[3][kTile], column[3], out[kTile];
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < 3; ++x) column[x] = tap(weight + (3 * y + x) * p.tap_stride, n);
      Winograd<M>::filter(column, rows[y]);
    }
    for (int x = 0; x < kTile; ++x) {
      for (int y = 0; y < 3; ++y) column[y] = rows[y][x];
      Winograd<M>::filter(column, out);
      for (int y = 0; y < kTile; ++y) store(to + (y * kTile + x) * kPanel, __builtin_convertvector(out[y], vfloat));
    }
  }

  void run() const {
    const int64_t panels = rounded_up(p.O, kPanel) / kPanel;
    parallel_for(panels * p.C, useful_threads(p.O * p.C * kTile * kTile, p.num_threads), [&](int64_t i) {
      float all[kTile * kTile * kPanel];  // gathered, for the places of two positions fall on one set of the cache
      for (int k = 0; k < kPanel; k += kWidth) vector(i / p.C * kPanel + k, i % p.C, all + k);
      for (int64_t position = 0; position < kTile * kTile; ++position)
        memcpy(p.packed + (position * panels * p.C + i) * kPanel, all + position * kPanel, kPanel * sizeof(float));
    });
  }
};

}  // namespace

Status conv3x3(const Conv3x3Params& p) {
  if (p.B == 0 || p.H == 0 || p.W == 0 || p.O == 0) return {};
  switch (p.dtype) {
    case kF32: return convolve<float>(p);
    case kF16: return convolve<half_t>(p);
    case kBF16: return convolve<bfloat16_t>(p);
  }
  return {kUnsupported, 0, p.dtype};
}

Status conv3x3_pack(const Conv3x3PackParams& p) {
  in_large_pages(p.packed, (p.tile + 2) * (p.tile + 2) * rounded_up(p.O, kPanel) * p.C * int64_t(sizeof(float)));
  p.tile == 4 ? Packing<4>{p}.run() : Packing<2>{p}.run();
  return {};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
