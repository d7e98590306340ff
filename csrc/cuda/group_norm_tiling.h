// How GroupNorm + SiLU cuts [B, C, S] into tiles, one a block.
//
// A tile is a rectangle of channels and positions: channels first, one run of memory, a row of it (a part of) a
// channel; channels last, a row is the tile's channels at one position. It covers whole groups where these fit into the
// block's registers, else a chunk of each of its groups. A thread takes vectors that lie as many vectors apart as the
// block handles at a time; channels last, these are in one column. The cut, and with it the order of every sum, depends
// on the shape, layout and element size alone.
#pragma once
#include "common.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kMaxThreads = 512;            // of a block: a thread has 128 registers
constexpr int kMaxChannels = kMaxThreads;   // of a tile
constexpr int64_t kMaxOffset = 1 << 30;     // within a tile
constexpr int kSector = 32, kLine = 128;    // bytes

struct Tiling {
  int64_t S;
  int32_t C, G, D;                   // D channels a group
  int32_t channel_tiles, position_tiles;
  int32_t pieces;                    // tiles that share the channels of a group; 1: a tile has all of its groups'
  int32_t groups, width, span;       // groups, channels and positions of a full tile
  int32_t vector;                    // elements of an access
  int32_t last;                      // rows are positions
  int32_t threads;
  int32_t turn;                      // of full tiles, channels first: a row is 2^turn vectors of each thread
};

// What a kernel asks of its tiles.
struct Wish {
  int per_thread;                    // elements, a power of two
  int threads;                       // of a block, channels first
  int64_t chunk;                     // elements of a tile that does not hold whole groups, at least
};

// Vectors of V elements that a thread holds: single elements take more registers to find.
constexpr int vectors_of(int per_thread, int V) { return V == 1 ? per_thread / 2 : per_thread / V; }

static inline int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }
static inline int64_t round_up(int64_t n, int64_t d) { return divide_up(n, d) * d; }
static inline int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }
static inline int64_t at_least(int64_t n, int64_t limit) { return n > limit ? n : limit; }

static inline bool is_whole(const Tiling& t) { return t.pieces == 1 && t.position_tiles == 1; }
static inline int64_t chunks_of(const Tiling& t) { return int64_t(t.pieces) * t.position_tiles; }
static inline int64_t tiles_of(const Tiling& t) { return int64_t(t.channel_tiles) * t.position_tiles; }

static inline int64_t threads_for(const Tiling& t, const Wish& wish, int64_t width, int64_t span) {
  const int per_thread = vectors_of(wish.per_thread, t.vector);
  const int64_t columns = divide_up(t.last ? width : span, t.vector), rows = t.last ? span : width;
  return round_up(t.last ? columns * divide_up(rows, per_thread) : divide_up(columns * rows, per_thread), kWarp);
}

static inline void cut_positions(Tiling& t, int64_t most, int64_t multiple) {
  t.span = static_cast<int32_t>(round_up(divide_up(t.S, divide_up(t.S, most)), multiple));
  t.position_tiles = static_cast<int32_t>(divide_up(t.S, t.span));
}

static inline void cut_group(Tiling& t, int64_t most, int64_t multiple) {
  t.width = static_cast<int32_t>(round_up(divide_up(t.D, divide_up(t.D, most)), multiple));
  t.pieces = static_cast<int32_t>(divide_up(t.D, t.width));
}

// Channels first: a group is one run.
static inline void cut_runs(Tiling& t, const Wish& wish, int64_t chunk) {
  if (t.D <= kMaxChannels && t.S <= kMaxOffset && threads_for(t, wish, t.D, t.S) <= wish.threads) {
    t.width = t.D, t.span = static_cast<int32_t>(t.S);
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

// Channels last: positions, given the width.
static inline void cut_rows(Tiling& t, const Wish& wish, int64_t chunk) {
  const int64_t columns = t.width / t.vector, most = kMaxThreads / columns * vectors_of(wish.per_thread, t.vector);
  cut_positions(t, at_least(1, at_most(chunk / t.width, at_most(most, kMaxOffset / t.C))), 1);
}

// Channels last: whole groups, sectors and, where that leaves enough tiles, lines; a group too wide for a tile is cut.
static inline void cut_columns(Tiling& t, const Wish& wish, int64_t chunk, int size) {
  if (t.D > kMaxChannels) {
    cut_group(t, kMaxChannels, t.vector);
    return cut_rows(t, wish, chunk);
  }
  int64_t unit = groups_for(t, kSector / size);
  if (unit == 0) unit = at_least(1, groups_for(t, t.vector));
  unit = at_most(unit, t.G);
  const int64_t line = at_least(1, at_most(kLine / (unit * t.D * size), t.G / unit)) * unit;
  const bool fits = t.S <= kMaxOffset / t.C && threads_for(t, wish, unit * t.D, t.S) <= kMaxThreads;
  const bool wide = !fits || line * t.D * t.S <= chunk / 2;
  t.groups = static_cast<int32_t>(wide ? line : unit);
  t.width = t.groups * t.D;
  if (fits) t.span = static_cast<int32_t>(t.S);
  else cut_rows(t, wish, chunk);
}

// Whether no vector lies in two tiles or, channels first, channels.
static inline bool has_whole_vectors(const Tiling& t) {
  if (!t.last) return t.S % t.vector == 0;
  return t.C % t.vector == 0 && (t.D > kMaxChannels ? t.D % t.vector == 0 : groups_for(t, t.vector) > 0);
}

static inline Tiling make_tiling(int64_t C, int64_t S, int64_t G, int32_t layout, int size, const Wish& wish) {
  const int32_t last = layout == kChannelsLast || S == 1;
  Tiling t = {S, int32_t(C), int32_t(G), int32_t(C / G), 1, 1, 1, 1, 1, 1, 16 / size, last, 0, 0};
  if (!has_whole_vectors(t)) t.vector = 1;
  const int per_thread = vectors_of(wish.per_thread, t.vector) * t.vector;
  const int64_t chunk = at_most(at_least(C * S / 256, wish.chunk), (t.last ? kMaxThreads : wish.threads) * per_thread);
  t.last ? cut_columns(t, wish, chunk, size) : cut_runs(t, wish, chunk);
  t.channel_tiles = static_cast<int32_t>(t.pieces * divide_up(G, t.groups));
  t.threads = static_cast<int32_t>(threads_for(t, wish, t.width, t.span));
  while (!t.last && t.threads << t.turn < t.span / t.vector) ++t.turn;
  return t;
}

// Whether all tiles are full, every thread has all its vectors, and the block is whole rows or a row 2^turn blocks.
static inline bool is_full(const Tiling& t, const Wish& wish) {
  const int64_t vectors = int64_t(t.width) * t.span / t.vector, columns = (t.last ? t.width : t.span) / t.vector;
  return t.S % t.span == 0 && t.D * t.groups % t.width == 0 && t.G % t.groups == 0 &&
         vectors == int64_t(t.threads) * vectors_of(wish.per_thread, t.vector) &&
         (t.threads % columns == 0 || (!t.last && t.threads << t.turn == columns));
}

// Room for the partial sums of a tile's threads, one entry a thread and channel (last) or a vector (first); rows of
// entries have an odd pitch, so that neither walk along them meets a bank twice.
static inline int64_t entries_of(const Tiling& t, const Wish& wish) {
  return int64_t(t.threads) * (t.last ? t.vector : vectors_of(wish.per_thread, t.vector)) + t.width;
}

}  // namespace cuda
}  // namespace fastdiff
