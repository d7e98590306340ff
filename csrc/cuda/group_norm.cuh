// What the passes of GroupNorm + SiLU share: the cut of [B, C, S] into tiles, one a block, and sums over a tile.
//
// A tile is a rectangle of channels and positions: channels first, one run of memory, a row of it (a part of) a channel;
// channels last, a row is the tile's channels at one position. It covers whole groups where these fit into
// the block's registers, else a chunk of each of its groups. A thread takes vectors `active` vectors apart; channels last,
// these lie in one column. The cut, and with it the order of every sum, depends on the shape, layout and element size
// alone.
#pragma once
#include "../arithmetic.h"
#include "common.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kMaxThreads = 768;      // of a block: more would leave a thread too few registers
constexpr int kMaxChannels = 1024;   // of a tile
constexpr int kSector = 32, kLine = 128;
constexpr int64_t kMaxOffset = 1 << 30;   // within a tile

struct Tiling {
  int64_t C, S, G, D;                // D channels a group
  int64_t channel_tiles, position_tiles;
  int64_t pieces;                    // tiles that share the channels of a group; 1: a tile has all channels of its groups
  int32_t groups, width, span;       // groups, channels and positions of a full tile
  int32_t vector;                    // elements of an access
  int32_t last;                      // rows are positions
  int32_t threads;
};

// What a kernel asks of its tiles.
struct Wish {
  int per_thread;                    // elements, a power of two
  int threads;                       // of a block, channels first
  int64_t chunk;                     // elements of a tile that does not hold whole groups, at least
};

// Vectors of V elements that a thread holds: single elements take more registers to find.
constexpr int vectors_of(int per_thread, int V) { return V == 1 ? per_thread / 2 : per_thread / V; }

FD_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }
static inline int64_t round_up(int64_t n, int64_t d) { return divide_up(n, d) * d; }
static inline int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }
static inline int64_t at_least(int64_t n, int64_t limit) { return n > limit ? n : limit; }

static inline bool is_whole(const Tiling& t) { return t.pieces == 1 && t.position_tiles == 1; }
static inline int64_t chunks_of(const Tiling& t) { return t.pieces * t.position_tiles; }
static inline int64_t tiles_of(const Tiling& t) { return t.channel_tiles * t.position_tiles; }

static inline int64_t threads_for(const Tiling& t, const Wish& wish, int64_t width, int64_t span) {
  const int per_thread = vectors_of(wish.per_thread, t.vector);
  const int64_t columns = divide_up(t.last ? width : span, t.vector), rows = t.last ? span : width;
  return round_up(t.last ? columns * divide_up(rows, per_thread) : divide_up(columns * rows, per_thread), kWarp);
}

static inline void cut_positions(Tiling& t, int64_t most, int64_t multiple) {
  t.span = static_cast<int32_t>(round_up(divide_up(t.S, divide_up(t.S, most)), multiple));
  t.position_tiles = divide_up(t.S, t.span);
}

static inline void cut_group(Tiling& t, int64_t most, int64_t multiple) {
  t.width = static_cast<int32_t>(round_up(divide_up(t.D, divide_up(t.D, most)), multiple));
  t.pieces = divide_up(t.D, t.width);
}

// Channels first: a group is one run.
static inline void cut_runs(Tiling& t, const Wish& wish, int64_t chunk) {
  if (t.D <= kMaxChannels && threads_for(t, wish, t.D, t.S) <= wish.threads) {
    t.width = static_cast<int32_t>(t.D), t.span = static_cast<int32_t>(t.S);
    return;
  }
  cut_positions(t, chunk, t.vector);
  cut_group(t, at_least(1, at_most(chunk / t.span, kMaxChannels)), 1);
}

// Least number of groups whose channels are a multiple of n elements; 0: more than a tile has.
static inline int64_t groups_for(const Tiling& t, int64_t n) {
  for (int64_t k = 1; k <= n && k * t.D <= kMaxChannels; ++k)
    if (k * t.D % n == 0) return k;
  return 0;
}

// Channels last: whole groups, sectors and, where that leaves enough tiles, lines; a group too wide for a tile is cut.
static inline void cut_columns(Tiling& t, const Wish& wish, int64_t chunk, int size) {
  if (t.D > kMaxChannels) {
    cut_group(t, kMaxChannels, t.vector);
    return cut_positions(t, at_least(1, at_most(chunk / t.width, kMaxOffset / t.C)), 1);
  }
  int64_t unit = groups_for(t, kSector / size);
  if (unit == 0) unit = at_least(1, groups_for(t, t.vector));
  unit = at_most(unit, t.G);
  const int64_t line = at_least(1, at_most(kLine / (unit * t.D * size), t.G / unit)) * unit;
  const bool fits = threads_for(t, wish, unit * t.D, t.S) <= kMaxThreads && t.S <= kMaxOffset / t.C;
  const bool wide = !fits || line * t.D * t.S <= chunk / 2;
  t.groups = static_cast<int32_t>(wide ? line : unit);
  t.width = static_cast<int32_t>(t.groups * t.D);
  cut_positions(t, fits ? t.S : at_least(1, at_most(chunk / t.width, kMaxOffset / t.C)), 1);
}

static inline Tiling make_tiling(int64_t C, int64_t S, int64_t G, int32_t layout, int size, const Wish& wish) {
  Tiling t = {C, S, G, C / G, 1, 1, 1, 1, 1, 1, 16 / size, layout == kChannelsLast || S == 1, 0};
  const bool whole_vectors = !t.last ? S % t.vector == 0 : C % t.vector == 0 &&
      (t.D > kMaxChannels ? t.D % t.vector == 0 : groups_for(t, t.vector) > 0);
  if (!whole_vectors) t.vector = 1;
  const int per_thread = vectors_of(wish.per_thread, t.vector) * t.vector;
  const int64_t chunk = at_most(at_least(C * S / 256, wish.chunk), (t.last ? kMaxThreads : wish.threads) * per_thread);
  t.last ? cut_columns(t, wish, chunk, size) : cut_runs(t, wish, chunk);
  t.channel_tiles = t.pieces * divide_up(G, t.groups);
  t.threads = static_cast<int32_t>(threads_for(t, wish, t.width, t.span));
  return t;
}

// Room for the partial sums of a tile's threads, one entry a thread and channel (last) or a vector (first); rows of
// entries have an odd pitch, so that neither walk along them meets a bank twice.
static inline int64_t entries_of(const Tiling& t, const Wish& wish) {
  return int64_t(t.threads) * (t.last ? t.vector : vectors_of(wish.per_thread, t.vector)) + t.width;
}

// Where this block's tile begins: found again where it is needed, for registers are few.
struct Corner {
  int32_t b, c, g;                   // sample; first channel and group
  int32_t chunk, position_tile;      // which chunk of its groups

  FD_MEMBER explicit Corner(const Tiling& t) {
    const uint32_t block = uint32_t(afresh(int32_t(blockIdx.x)));
    const uint32_t position_tiles = uint32_t(t.position_tiles), channel_tiles = uint32_t(t.channel_tiles);
    const uint32_t rest = block / position_tiles, tile = rest % channel_tiles, piece = tile % uint32_t(t.pieces);
    b = int32_t(rest / channel_tiles);
    position_tile = int32_t(block % position_tiles);
    g = int32_t(tile / uint32_t(t.pieces)) * t.groups;
    c = g * int32_t(t.D) + int32_t(piece) * t.width;
    chunk = int32_t(piece) * int32_t(t.position_tiles) + position_tile;
  }
  FD_MEMBER int64_t group(const Tiling& t, int i) const { return b * t.G + g + i; }
  FD_MEMBER int64_t channel(const Tiling& t, int i) const { return b * t.C + c + i; }
};

// This block's tile.
template <class T, int V, bool kLast, int kPerThread>
struct Tile {
  static constexpr int kVectors = vectors_of(kPerThread, V);
  typedef Words<T, V> Raw[kVectors];
  typedef float Values[kVectors][V];

  int64_t base;                      // offset of the thread's first element
  int32_t channels, groups, D, positions;   // D channels a group
  int32_t columns, active, total;    // vectors: of a row, from one of a thread to its next, of the tile
  int32_t place, move;               // row << 16 | column of the thread's first vector, and from one to its next
  int32_t step;                      // offset from one to the next

  FD_MEMBER explicit Tile(const Tiling& t) {
    const Corner at(t);
    const int64_t s = int64_t(at.position_tile) * t.span;
    groups = int32_t(least(t.G - at.g, t.groups));
    channels = int32_t(least((at.g + groups) * t.D - at.c, t.width));
    D = groups == 1 ? channels : int32_t(t.D);
    positions = int32_t(least(t.S - s, t.span));
    base = at.b * t.C * t.S + (kLast ? s * t.C + at.c : at.c * t.S + s);
    columns = (kLast ? channels : positions) / V;
    const int thread = threadIdx.x, rows = int32_t(blockDim.x) / columns;
    const int row = thread / columns, column = thread - row * columns;
    place = row << 16 | column;
    active = kLast ? rows * columns : int32_t(blockDim.x);
    step = kLast ? rows * int32_t(t.C) : active * V;
    move = kLast ? rows << 16 : rows << 16 | (active - rows * columns);
    total = thread < active ? columns * (kLast ? positions : channels) : 0;
    base += kLast ? row * t.C + column * V : int64_t(thread * V);
  }

  FD_MEMBER int row() const { return place >> 16; }
  FD_MEMBER int column() const { return place & 0xffff; }

  // body(i, offset) for each of the thread's vectors.
  template <class Body>
  FD_MEMBER void each(const Body& body) const {
    const int first = afresh(threadIdx.x), apart = afresh(step);
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i)
      if (first + i * active < total) body(i, base + i * apart);
  }

  // body(i, offset, row, column), channels first.
  template <class Body>
  FD_MEMBER void each_placed(const Body& body) const {
    const int first = afresh(threadIdx.x), apart = afresh(step);
    int at = afresh(place);
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if (first + i * active < total) body(i, base + i * apart, at >> 16, at & 0xffff);
      at += move;
      if ((at & 0xffff) >= columns) at += (1 << 16) - columns;
    }
  }

  // All vectors are on their way before one is used; 0 where the tile has none.
  FD_MEMBER void load(const void* data, bool aligned, Raw& raw) const {
    const T* const p = static_cast<const T*>(data);
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i) raw[i] = {};
    if (aligned) {
      each([&](int i, int64_t offset) { raw[i] = load_words<T, V>(p + offset); });
    } else {
      each([&](int i, int64_t offset) {
        FD_UNROLL
        for (int j = 0; j < V; ++j)
          raw[i].at[j * sizeof(T) / 4] |= load_words<T, 1>(p + offset + j).at[0] << j * sizeof(T) % 4 * 8;
      });
    }
  }

  FD_MEMBER static void widen(const Raw& raw, Values& v) {
    FD_UNROLL
    for (int i = 0; i < kVectors; ++i) cuda::widen<T, V>(raw[i], v[i]);
  }

  FD_MEMBER void store(void* data, bool aligned, int64_t offset, const float (&v)[V]) const {
    T* const p = static_cast<T*>(data) + offset;
    if (aligned) return store_floats(p, v);
    FD_UNROLL
    for (int j = 0; j < V; ++j) store_floats(p + j, {v[j]});
  }
};

// body(i, offset, v) for each of the thread's vectors, with v[k][j] = value k of the channel of element j, k < N, which
// lie `width` apart: channels first one channel for the vector, channels last the same ones for all of the thread's.
template <int N, class T, int V, bool kLast, int kPerThread, class Body>
FD_DEVICE void each_with(const Tile<T, V, kLast, kPerThread>& tile, Shared<float> values, int width, const Body& body) {
  float v[N][V];
  if (kLast) {
    FD_UNROLL
    for (int k = 0; k < N; ++k) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) v[k][j] = values[k * width + tile.column() * V + j];
    }
    tile.each([&](int i, int64_t offset) { body(i, offset, v); });
  } else {
    tile.each_placed([&](int i, int64_t offset, int row, int) {
      FD_UNROLL
      for (int k = 0; k < N; ++k) {
        const float same = values[k * width + row];
        FD_UNROLL
        for (int j = 0; j < V; ++j) v[k][j] = same;
      }
      body(i, offset, v);
    });
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

// sums[n] = sum of read(n, row, i) over i < length, then emit(row, lane, lanes, sums) by each of the row's lanes. The whole
// block calls this.
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
      for (int n = 0; n < N; ++n) sums[n] += __shfl_xor_sync(0xffffffffu, sums[n], distance);
    }
    if (row < rows) emit(row, lane, lanes, sums);
  }
}

}  // namespace cuda
}  // namespace fastdiff
