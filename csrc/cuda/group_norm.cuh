// The device's side of group_norm_tiling.h: a block's tile, and sums over it.
#pragma once
#include "../dropout.h"
#include "group_norm_tiling.h"

namespace fastdiff {
namespace cuda {

// Where this block's tile begins: found again where it is needed, for registers are few.
struct Corner {
  int32_t b, c, g;                   // sample; first channel and group
  int32_t chunk, position_tile;      // which chunk of its groups

  FD_MEMBER explicit Corner(const Tiling& t) {
    const uint32_t block = uint32_t(afresh(int32_t(blockIdx.x)));
    const uint32_t rest = block / uint32_t(t.position_tiles), tile = rest % uint32_t(t.channel_tiles);
    const uint32_t piece = tile % uint32_t(t.pieces);
    b = int32_t(rest / uint32_t(t.channel_tiles));
    position_tile = int32_t(block % uint32_t(t.position_tiles));
    g = int32_t(tile / uint32_t(t.pieces)) * t.groups;
    c = g * t.D + int32_t(piece) * t.width;
    chunk = int32_t(piece) * t.position_tiles + position_tile;
  }
  FD_MEMBER int64_t group(const Tiling& t, int i) const { return int64_t(b) * t.G + g + i; }
  FD_MEMBER int64_t channel(const Tiling& t, int i) const { return int64_t(b) * t.C + c + i; }
};

// This block's tile. kFull: all tiles are full (is_full), and vectors may be read. T: of all tensors, perhaps Any or
// Narrow.
template <class T, int V, bool kLast, int kPerThread, bool kFull>
struct Tile {
  static constexpr int kVectors = vectors_of(kPerThread, V);
  typedef Words<T, V> Raw[kVectors];
  typedef float Values[kVectors][V];

  int64_t base;                      // offset of the thread's first element
  int32_t channels, groups, D, positions;   // D channels a group
  int32_t columns, active, total;    // vectors: of a row, from one of a thread to its next, of the tile
  int32_t place, move;               // row << 16 | column of the thread's first vector, and from one to its next
  int32_t step;                      // offset from one to the next
  int32_t turn;                      // kFull, channels first: a row is 2^turn of a thread's vectors
  int32_t dtype;

  FD_MEMBER Tile(const Tiling& t, int32_t dtype) : dtype(dtype) {
    const Corner at(t);
    const int64_t s = int64_t(at.position_tile) * t.span;
    groups = kFull ? t.groups : least(t.G - at.g, t.groups);
    channels = kFull ? t.width : least((at.g + groups) * t.D - at.c, t.width);
    positions = kFull || t.S - s > t.span ? t.span : int32_t(t.S - s);
    D = groups == 1 ? channels : t.D;
    columns = uint32_t(kLast ? channels : positions) / V;
    const int thread = threadIdx.x, threads = blockDim.x, rows = threads / columns;
    const int row = thread / columns, column = thread - row * columns;
    active = kLast && !kFull ? rows * columns : threads;
    place = row << 16 | column;
    move = rows << 16 | (active - rows * columns);
    step = kLast ? rows * t.C : active * V;
    turn = t.turn;
    total = thread < active ? columns * (kLast ? positions : channels) : 0;
    base = at.b * t.S * t.C + (kLast ? (s + row) * t.C + at.c + column * V : at.c * t.S + s + thread * V);
  }

  FD_MEMBER static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

  FD_MEMBER int row() const { return place >> 16; }
  FD_MEMBER int column() const { return place & 0xffff; }
  FD_MEMBER int row_of(int i) const { return row() + i * (move >> 16); }   // channels last, of the thread's i-th vector

  // body(i, offset) for each of the thread's vectors.
  template <class Body>
  FD_MEMBER void each(const Body& body) const {
    const int first = afresh(threadIdx.x);
    const int64_t apart = afresh(step);
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i)
      if (kFull || first + i * active < total) body(i, base + i * apart);
  }

  // body(i, offset, row, column), channels first. Offsets within a tile are of 32 bits: of 64, nvcc takes vectors apart.
  template <class Body>
  FD_MEMBER void each_placed(const Body& body) const {
    const int first = afresh(threadIdx.x);
    const int64_t apart = afresh(step);
    int at = afresh(place);
    const int row = at >> 16, column = at & 0xffff, rows = turn ? 1 : move >> 16;
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (kFull) {
        const int further = i * rows >> turn;
        body(i, base + i * apart, row + further, column + i * active - further * columns);
      } else {
        if (first + i * active < total) body(i, base + i * apart, at >> 16, at & 0xffff);
        at += move;
        if ((at & 0xffff) >= columns) at += (1 << 16) - columns;
      }
    }
  }

  // All vectors are on their way before one is used; 0 where the tile has none.
  FD_MEMBER void load(const void* data, bool aligned, Raw& raw) const {
    with_size<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      const U* const p = static_cast<const U*>(data);
      if (kFull || V == 1 || aligned) each([&](int i, int64_t offset) { raw[i] = load_words<U, V>(p + offset); });
      else each([&](int i, int64_t offset) { raw[i] = gather_words<U, V>(p + offset); });
    });
  }

  // One vector.
  FD_MEMBER void get(const void* data, bool aligned, int64_t offset, float (&v)[V]) const {
    Words<T, V> words;
    with_size<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      const U* const p = static_cast<const U*>(data) + offset;
      words = kFull || V == 1 || aligned ? load_words<U, V>(p) : gather_words<U, V>(p);
    });
    with_dtype<T>(dtype, [&](auto type) { cuda::widen<typename decltype(type)::Is, V>(words, v); });
  }

  FD_MEMBER void widen(const Raw& raw, Values& v) const {
    with_dtype<T>(dtype, [&](auto type) {
      FD_UNROLL
      for (int i = 0; i < kVectors; ++i) cuda::widen<typename decltype(type)::Is, V>(raw[i], v[i]);
    });
  }

  FD_MEMBER void store(void* data, bool aligned, int64_t offset, const float (&v)[V]) const {
    Words<T, V> words;
    with_dtype<T>(dtype, [&](auto type) { narrow<typename decltype(type)::Is, V>(v, words); });
    with_size<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      U* const p = static_cast<U*>(data) + offset;
      if (kFull || V == 1 || aligned) store_words<U, V>(p, words);
      else scatter_words<U, V>(p, words);
    });
  }
};

// body(i, offset, v, row, column) for each of the thread's vectors, with v[k][j] = values[N * channel of element j +
// k], k < N: channels first one channel for the vector, channels last the same ones for all of the thread's.
template <int N, class T, int V, bool kLast, int kPerThread, bool kFull, class Body>
FD_DEVICE void each_placed_with(const Tile<T, V, kLast, kPerThread, kFull>& tile, Shared<float> values,
                                const Body& body) {
  float v[N][V];
  if (kLast) {
    FD_UNROLL
    for (int j = 0; j < V; ++j) {
      FD_UNROLL
      for (int k = 0; k < N; ++k) v[k][j] = values[(tile.column() * V + j) * N + k];
    }
    tile.each([&](int i, int64_t offset) { body(i, offset, v, tile.row_of(i), tile.column()); });
  } else {
    tile.each_placed([&](int i, int64_t offset, int row, int column) {
      FD_UNROLL
      for (int k = 0; k < N; ++k) {
        const float same = values[row * N + k];
        FD_UNROLL
        for (int j = 0; j < V; ++j) v[k][j] = same;
      }
      body(i, offset, v, row, column);
    });
  }
}

// body(i, offset, v).
template <int N, class T, int V, bool kLast, int kPerThread, bool kFull, class Body>
FD_DEVICE void each_with(const Tile<T, V, kLast, kPerThread, kFull>& tile, Shared<float> values, const Body& body) {
  const auto rest = [&](int i, int64_t offset, const float (&v)[N][V], int, int) { body(i, offset, v); };
  each_placed_with<N>(tile, values, rest);
}

// Dropout's mask of a tile: a bit an element, kMaskBits positions of a channel to a word.
FD_FN int mask_words(const Tiling& t) { return (t.span + kMaskBits - 1) / kMaskBits; }

// Draws it, a word a thread at a time.
template <class T, int V, bool kLast, int kPerThread, bool kFull>
FD_DEVICE void draw_mask(const Tile<T, V, kLast, kPerThread, kFull>& tile, const Tiling& t, const Dropout& drop,
                         Shared<float> mask) {
  const Corner at(t);
  const NoiseKey key = {uint32_t(load(drop.sample_ids + at.b)), uint32_t(load(drop.rng + 1)), drop.stream,
                        uint64_t(load(drop.rng))};
  const int words = mask_words(t);
  const int64_t s = int64_t(at.position_tile) * t.span;
  FD_ROLLED
  for (int i = threadIdx.x; i < tile.channels * words; i += blockDim.x) {
    const int c = i / words, begin = (i - c * words) * kMaskBits, count = tile.positions - begin;
    if (count <= 0) continue;
    const int64_t first = (at.c + c) * t.S + s + begin;
    mask[i] = bits_to_float(kept_bits(key, first, count < kMaskBits ? count : kMaskBits, drop.threshold));
  }
}

// v of a vector at a row and column of the tile: times drop.factor where the mask keeps an element, else 0.
template <bool kLast, int V>
FD_DEVICE void apply_mask(const Tiling& t, const Dropout& drop, Shared<float> mask, int row, int column,
                          float (&v)[V]) {
  const int words = mask_words(t), s = kLast ? row : column * V, step = kLast ? words : 0;
  const Shared<float> first = mask + ((kLast ? column * V : row) * words + s / kMaskBits);
  FD_UNROLL
  for (int j = 0; j < V; ++j) {                        // channels first, a word has all of the vector's
    const uint32_t bits = float_to_bits(first[j * step]) >> (s % kMaskBits + (kLast ? 0 : j));
    v[j] = bits & 1u ? v[j] * float(drop.factor) : 0.0f;
  }
}

// Element i of a tensor of floats, or what stands for it where there is none.
FD_DEVICE float number(const void* data, int32_t dtype, int64_t i, float absent) {
  if (!data) return absent;
  if (dtype == kF32) return load(static_cast<const float*>(data) + i);
  if (dtype == kF16) return widen(load(static_cast<const half_t*>(data) + i));
  if (dtype == kBF16) return widen(load(static_cast<const bfloat16_t*>(data) + i));
  return float(load(static_cast<const double*>(data) + i));
}

template <class T>
FD_DEVICE void set_as(void* data, int64_t i, float v) {
  T narrowed;
  narrow(v, narrowed);
  store(static_cast<T*>(data) + i, narrowed);
}

// The same for an output.
FD_DEVICE void set_number(void* data, int32_t dtype, int64_t i, float v) {
  if (!data) return;
  if (dtype == kF32) set_as<float>(data, i, v);
  else if (dtype == kF16) set_as<half_t>(data, i, v);
  else if (dtype == kBF16) set_as<bfloat16_t>(data, i, v);
  else store(static_cast<double*>(data) + i, double(v));
}

// (1 + scale) of a channel, and its map of the normalized value n: h = n * gain + offset.
template <class P>
FD_DEVICE float modulation(const P& p, int64_t b, int64_t c) {
  return 1.0f + number(p.scale, p.scale_dtype, b * p.scale_stride + c, 0.0f);
}

template <class P>
FD_DEVICE float gain_of(const P& p, int64_t b, int64_t c) {
  return number(p.weight, p.weight_dtype, c, 1.0f) * modulation(p, b, c);
}

template <class P>
FD_DEVICE float offset_of(const P& p, int64_t b, int64_t c) {
  const float shift = number(p.shift, p.shift_dtype, b * p.shift_stride + c, 0.0f);
  return fmaf(number(p.bias, p.weight_dtype, c, 0.0f), modulation(p, b, c), shift);
}

template <class P>
FD_DEVICE float add_of(const P& p, int64_t b, int64_t c) {
  return number(p.add, p.add_dtype, b * p.add_stride + c, 0.0f);
}

// The derivative of SiLU, within a few ulp, of z = h kMinusLog2E, which comes for nothing with the terms of h.
FD_DEVICE float slope_of_exponent(float z) {
  const float gate = approximate_reciprocal(1.0f + exp2_of(z));
  return gate * fmaf(z, fmaf(gate, kLn2, -kLn2), 1.0f);
}

// sums[n] = sum of read(n, row, i) over i < length, then emit(row, lane, lanes, sums) by each of the row's lanes. The
// whole block calls this.
template <int N, class Read, class Emit>
FD_DEVICE void sum_rows(int rows, int length, const Read& read, const Emit& emit) {
  const int threads = blockDim.x;
  int lanes = kWarp;
  while (lanes > 1 && lanes * rows > threads) lanes /= 2;
  const int lane = threadIdx.x % lanes;
  FD_ROLLED
  for (int first = 0; first < rows; first += threads / lanes) {
    const int row = first + int32_t(threadIdx.x) / lanes;
    float sums[N] = {};
    if (row < rows)
      FD_ROLLED
      for (int i = lane; i < length; i += lanes) {
        FD_UNROLL
        for (int n = 0; n < N; ++n) sums[n] += read(n, row, i);
      }
    FD_ROLLED
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      FD_UNROLL
      for (int n = 0; n < N; ++n) sums[n] += across(sums[n], distance);
    }
    if (row < rows) emit(row, lane, lanes, sums);
  }
}

}  // namespace cuda
}  // namespace fastdiff
