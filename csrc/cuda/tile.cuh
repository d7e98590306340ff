// Tiles: stretches of a sample's pixels with all channels, where these are few. A block exchanges one in shared memory.
//
// A thread has N elements of its block's tile, four or eight, in one of two orders. Planes: N pixels of one channel,
// which Philox blocks draw and which lie side by side channels first. Runs: what lies side by side channels last. Each
// tensor is reached in its own order, neighbouring threads at neighbouring addresses. The whole block calls each function that
// has a barrier, whether a thread's elements exist or not.
#pragma once
#include "common.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kQuad = 4, kWide = 8, kBlock = 256, kWarpsPerBlock = kBlock / kWarp;

// Elements from one sample, channel, pixel to the next.
struct Strides {
  int64_t sample, channel, pixel;
};

static inline Strides make_strides(int32_t layout, int64_t C, int64_t S) {
  return layout == kChannelsLast ? Strides{C * S, 1, C} : Strides{C * S, S, 1};
}

FD_DEVICE int64_t divide(int64_t n, int64_t d) {
  return (n | d) >> 32 ? n / d : int64_t(uint32_t(n) / uint32_t(d));
}

// Whether neighbours in memory are a pixel's channels.
FD_DEVICE bool has_runs(const Strides& strides) { return strides.pixel != 1; }

// The most channels: a tile has a multiple of kWarp quads of each, so a warp keeps to one channel of planes.
constexpr int kTileChannels = kBlock / kWarp;

// Shared memory in N columns. A run lies across them; the runs of a channel are C apart in one column, so a gap every
// kWarp spreads them over the banks where C is even. 2 * kBlock runs: those of twice the channels fit as well. From one
// column to the next it is kWarp / N banks.
template <int N>
constexpr int kColumn = 2 * (kBlock + kWarpsPerBlock) + 16 + kWarp / N;

struct Tile {
  int64_t first;      // pixel
  int32_t pixels;     // that exist
  int32_t C, c, s;    // in planes: the thread's channel, and its first pixel counted from `first`
  bool runs;          // the order that the kernel computes in
  bool aligned;       // whether vectors can be reached; else they are element by element

  FD_MEMBER int thread() const { return int(threadIdx.x); }

  // Whether the thread's elements exist.
  template <int N>
  FD_MEMBER bool has(bool in_runs) const { return in_runs ? thread() * N < pixels * C : s < pixels; }

  // The j-th of the thread's elements, counted through the tile as it lies channels last.
  template <int N>
  FD_MEMBER int element(bool in_runs, int j) const { return in_runs ? thread() * N + j : (s + j) * C + c; }
};

template <int N>
FD_DEVICE Shared<float> tile_memory() {
  FD_SHARED(float, memory, N * kColumn<N>);
  return memory;
}

// Where element i is in it.
template <int N>
FD_DEVICE int tile_place(int i) {
  const uint32_t run = uint32_t(i) / N;
  return int(uint32_t(i) % N * kColumn<N> + run + run / kWarp);
}

// From planes to runs, or back.
template <int N>
FD_DEVICE void exchange(const Tile& tile, bool from_runs, float (&v)[N]) {
  const Shared<float> memory = tile_memory<N>();
  __syncthreads();                                    // it may still be read
  FD_UNROLL
  for (int j = 0; j < N; ++j) memory[tile_place<N>(tile.element<N>(from_runs, j))] = v[j];
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < N; ++j) v[j] = memory[tile_place<N>(tile.element<N>(!from_runs, j))];
}

// Where the thread's vector of a tensor is in a sample.
template <int N>
FD_DEVICE int64_t tile_offset(const Tile& tile, const Strides& strides) {
  return tile.first * strides.pixel + (has_runs(strides) ? tile.thread() * N : tile.c * strides.channel + tile.s);
}

template <class T, int N>
FD_DEVICE void load_vector(const Tile& tile, const T* p, float (&v)[N]) {
  if (tile.aligned) return load_floats(p, v);
  FD_UNROLL
  for (int j = 0; j < N; ++j) v[j] = widen(load(p + j));
}

template <class T, int N>
FD_DEVICE void store_vector(const Tile& tile, T* p, const float (&v)[N]) {
  if (tile.aligned) return store_floats(p, v);
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    T value;
    narrow(v[j], value);
    store(p + j, value);
  }
}

template <int N>
FD_DEVICE void fill_zeros(float (&v)[N]) {
  const float zero = put_off(0.0f);
  FD_UNROLL
  for (int j = 0; j < N; ++j) v[j] = zero;
}

// The thread's elements of a tensor's sample at p.
template <class T, int N>
FD_DEVICE void load_tile(const Tile& tile, const T* p, const Strides& strides, float (&v)[N]) {
  const bool runs = has_runs(strides);
  if (tile.has<N>(runs)) load_vector(tile, p + tile_offset<N>(tile, strides), v);
  else fill_zeros(v);                             // what does not exist is exchanged as well
  if (runs != tile.runs) exchange(tile, runs, v);
}

template <class T, int N>
FD_DEVICE void store_tile(const Tile& tile, T* p, const Strides& strides, const float (&v)[N]) {
  const bool runs = has_runs(strides);
  float mine[N];
  FD_UNROLL
  for (int j = 0; j < N; ++j) mine[j] = v[j];
  if (runs != tile.runs) exchange(tile, tile.runs, mine);
  if (tile.has<N>(runs)) store_vector(tile, p + tile_offset<N>(tile, strides), mine);
}

// Puts the tile of a tensor [B, 2C, S], channels last, into shared memory.
template <int N, class T>
FD_DEVICE void load_pair(const Tile& tile, const T* p) {
  p += tile.first * 2 * tile.C;
  const Shared<float> memory = tile_memory<N>();
  __syncthreads();
  FD_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int i = (half * int(blockDim.x) + tile.thread()) * N;
    float v[N] = {};
    if (i < tile.pixels * 2 * tile.C) load_vector(tile, p + i, v);
    FD_UNROLL
    for (int j = 0; j < N; ++j) memory[tile_place<N>(i + j)] = v[j];
  }
  __syncthreads();
}

// The thread's elements of what load_pair put there, from a first channel on, 0 or C.
template <int N>
FD_DEVICE void take_half(const Tile& tile, int channel, float (&v)[N]) {
  const Shared<float> memory = tile_memory<N>();
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    const int i = tile.element<N>(tile.runs, j), pixel = int(uint32_t(i) / uint32_t(tile.C));
    v[j] = memory[tile_place<N>(i + pixel * tile.C + channel)];
  }
}

// Writes the tile of a tensor [B, 2C, S], channels last, whose halves' elements the thread has in v and w.
template <class T, int N>
FD_DEVICE void store_pair(const Tile& tile, T* p, const float (&v)[N], const float (&w)[N]) {
  p += tile.first * 2 * tile.C;
  const Shared<float> memory = tile_memory<N>();
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    const int i = tile.element<N>(tile.runs, j), here = i + int(uint32_t(i) / uint32_t(tile.C)) * tile.C;
    memory[tile_place<N>(here)] = v[j];
    memory[tile_place<N>(here + tile.C)] = w[j];
  }
  __syncthreads();
  FD_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int i = (half * int(blockDim.x) + tile.thread()) * N;
    float both[N];
    FD_UNROLL
    for (int j = 0; j < N; ++j) both[j] = memory[tile_place<N>(i + j)];
    if (i < tile.pixels * 2 * tile.C) store_vector(tile, p + i, both);
  }
}

// Pixels of a tile that are mirrored together: whole lines, or a part of one.
struct Stretch {
  int begin, count;   // in the tile
  int length;         // of a line
  int64_t from;       // the first pixel of the mirror image
};

FD_DEVICE Stretch find_stretch(const Tile& tile, int begin, int64_t W) {
  const int left = tile.pixels - begin;
  const int64_t first = tile.first + begin, line = divide(first, W), column = first - line * W;
  if (column == 0 && left >= W) return {begin, left - left % int(W), int(W), first};
  const int length = left < W - column ? left : int(W - column);
  return {begin, length, length, first + W - length - 2 * column};
}

// Puts a stretch into shared memory, mirrored, by vectors of what lies side by side in the sample at p.
template <int N, class T>
FD_DEVICE void load_stretch(const Tile& tile, const Stretch& part, const T* p, const Strides& strides) {
  const Shared<float> memory = tile_memory<N>();
  const int C = tile.C, per_pixel = has_runs(strides) ? C : 1, n = part.count * per_pixel;
  p += part.from * strides.pixel;
  const int skipped = int(uint64_t(part.from * strides.pixel) % N), vectors = (skipped + n + N - 1) / N;
  for (int i = tile.thread(); i < vectors * (C / per_pixel); i += blockDim.x) {
    const int plane = i / vectors, e = (i - plane * vectors) * N - skipped;
    float v[N];
    load_vector(tile, p + plane * strides.channel + e, v);
    FD_UNROLL
    for (int j = 0; j < N; ++j) {
      if (uint32_t(e + j) >= uint32_t(n)) continue;
      const int pixel = (e + j) / per_pixel, c = plane + e + j - pixel * per_pixel, line = pixel / part.length;
      const int s = part.begin + (2 * line + 1) * part.length - 1 - pixel;
      memory[tile_place<N>(s * C + c)] = v[j];
    }
  }
}

// The thread's elements of the sample at p with each line of W pixels mirrored.
template <class T, int N>
FD_DEVICE void load_mirrored_tile(const Tile& tile, const T* p, const Strides& strides, int64_t W, float (&v)[N]) {
  const Shared<float> memory = tile_memory<N>();
  const bool exists = tile.has<N>(tile.runs);
  __syncthreads();
  for (int begin = 0; begin < tile.pixels;) {
    const Stretch part = find_stretch(tile, begin, W);
    load_stretch<N>(tile, part, p, strides);
    begin += part.count;
  }
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < N; ++j) v[j] = exists ? float(memory[tile_place<N>(tile.element<N>(tile.runs, j))]) : 0.0f;
}

}  // namespace cuda
}  // namespace fastdiff
