// Tiles: stretches of a sample's pixels with all channels, where these are few. A block exchanges one in shared memory.
//
// A thread has four elements of its block's tile, in one of two orders. Planes: four pixels of one channel, which one
// Philox block draws and which lie side by side channels first. Runs: what lies side by side channels last. Each tensor
// is reached in its own order, neighbouring threads at neighbouring addresses. The whole block calls each function that
// has a barrier, whether a thread's elements exist or not.
#pragma once
#include "common.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kQuad = 4, kBlock = 256, kWarpsPerBlock = kBlock / kWarp;

// Elements from one sample, channel, pixel to the next.
struct Strides {
  int64_t sample, channel, pixel;
};

static inline Strides make_strides(int32_t layout, int64_t C, int64_t S) {
  return layout == kChannelsLast ? Strides{C * S, 1, C} : Strides{C * S, S, 1};
}

// Whether neighbours in memory are a pixel's channels.
FD_DEVICE bool has_runs(const Strides& strides) { return strides.pixel != 1; }

// The most channels: a tile has a multiple of kWarp quads of each, so a warp keeps to one channel of planes.
constexpr int kTileChannels = kBlock / kWarp;

// Shared memory in kQuad columns. A run lies across them; the quads of a channel are C apart in one column, so a gap
// every kWarp spreads them over the banks where C is even. 2 * kBlock runs: those of twice the channels fit as well.
constexpr int kColumn = 2 * (kBlock + kWarpsPerBlock) + 24;   // 8 banks from one column to the next

struct Tile {
  int64_t first;      // pixel
  int32_t pixels;     // that exist
  int32_t C, c, s;    // in planes: the thread's channel, and its first pixel counted from `first`
  bool runs;          // the order that the kernel computes in
  bool aligned;       // whether vectors can be reached; else they are element by element

  FD_MEMBER int thread() const { return int(threadIdx.x); }

  // Whether the thread's elements exist.
  FD_MEMBER bool has(bool in_runs) const { return in_runs ? thread() * kQuad < pixels * C : s < pixels; }

  // The j-th of the thread's elements, counted through the tile as it lies channels last.
  FD_MEMBER int element(bool in_runs, int j) const { return in_runs ? thread() * kQuad + j : (s + j) * C + c; }
};

FD_DEVICE Shared<float> tile_memory() {
  FD_SHARED(float, memory, kQuad * kColumn);
  return memory;
}

// Where element i is in it.
FD_DEVICE int tile_place(int i) {
  const uint32_t run = uint32_t(i) / kQuad;
  return int(uint32_t(i) % kQuad * kColumn + run + run / kWarp);
}

// From planes to runs, or back.
FD_DEVICE void exchange(const Tile& tile, bool from_runs, float (&v)[kQuad]) {
  const Shared<float> memory = tile_memory();
  __syncthreads();                                    // it may still be read
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) memory[tile_place(tile.element(from_runs, j))] = v[j];
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) v[j] = memory[tile_place(tile.element(!from_runs, j))];
}

// Where the thread's vector of a tensor is in a sample.
FD_DEVICE int64_t tile_offset(const Tile& tile, const Strides& strides) {
  return tile.first * strides.pixel +
         (has_runs(strides) ? tile.thread() * kQuad : tile.c * strides.channel + tile.s);
}

template <class T>
FD_DEVICE void load_vector(const Tile& tile, const T* p, float (&v)[kQuad]) {
  if (tile.aligned) return load_floats(p, v);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) v[j] = widen(load(p + j));
}

template <class T>
FD_DEVICE void store_vector(const Tile& tile, T* p, const float (&v)[kQuad]) {
  if (tile.aligned) return store_floats(p, v);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    T value;
    narrow(v[j], value);
    store(p + j, value);
  }
}

// The thread's elements of a tensor's sample at p.
template <class T>
FD_DEVICE void load_tile(const Tile& tile, const T* p, const Strides& strides, float (&v)[kQuad]) {
  const bool runs = has_runs(strides);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) v[j] = 0.0f;        // what does not exist is exchanged as well
  if (tile.has(runs)) load_vector(tile, p + tile_offset(tile, strides), v);
  if (runs != tile.runs) exchange(tile, runs, v);
}

template <class T>
FD_DEVICE void store_tile(const Tile& tile, T* p, const Strides& strides, const float (&v)[kQuad]) {
  const bool runs = has_runs(strides);
  float mine[kQuad];
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) mine[j] = v[j];
  if (runs != tile.runs) exchange(tile, tile.runs, mine);
  if (tile.has(runs)) store_vector(tile, p + tile_offset(tile, strides), mine);
}

// Puts the tile of a tensor [B, 2C, S], channels last, into shared memory.
template <class T>
FD_DEVICE void load_pair(const Tile& tile, const T* p) {
  p += tile.first * 2 * tile.C;
  const Shared<float> memory = tile_memory();
  __syncthreads();
  FD_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int i = (half * int(blockDim.x) + tile.thread()) * kQuad;
    float v[kQuad] = {};
    if (i < tile.pixels * 2 * tile.C) load_vector(tile, p + i, v);
    FD_UNROLL
    for (int j = 0; j < kQuad; ++j) memory[tile_place(i + j)] = v[j];
  }
  __syncthreads();
}

// The thread's elements of what load_pair put there, from a first channel on, 0 or C.
FD_DEVICE void take_half(const Tile& tile, int channel, float (&v)[kQuad]) {
  const Shared<float> memory = tile_memory();
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const int i = tile.element(tile.runs, j), pixel = int(uint32_t(i) / uint32_t(tile.C));
    v[j] = memory[tile_place(i + pixel * tile.C + channel)];
  }
}

// Writes the tile of a tensor [B, 2C, S], channels last, whose halves' elements the thread has in v and w.
template <class T>
FD_DEVICE void store_pair(const Tile& tile, T* p, const float (&v)[kQuad], const float (&w)[kQuad]) {
  p += tile.first * 2 * tile.C;
  const Shared<float> memory = tile_memory();
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const int i = tile.element(tile.runs, j), here = i + int(uint32_t(i) / uint32_t(tile.C)) * tile.C;
    memory[tile_place(here)] = v[j];
    memory[tile_place(here + tile.C)] = w[j];
  }
  __syncthreads();
  FD_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int i = (half * int(blockDim.x) + tile.thread()) * kQuad;
    float both[kQuad];
    FD_UNROLL
    for (int j = 0; j < kQuad; ++j) both[j] = memory[tile_place(i + j)];
    if (i < tile.pixels * 2 * tile.C) store_vector(tile, p + i, both);
  }
}

// v = read(c, s) of the thread's elements, s counted from tile.first; neighbouring threads read neighbouring elements
// of one order.
template <class Read>
FD_DEVICE void gather(const Tile& tile, bool in_runs, const Read& read, float (&v)[kQuad]) {
  const Shared<float> memory = tile_memory();
  const uint32_t threads = blockDim.x, C = tile.C, pitch = threads * kQuad / C;
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const uint32_t i = j * threads + threadIdx.x, slow = i / (in_runs ? C : pitch), fast = i % (in_runs ? C : pitch);
    const int c = int(in_runs ? fast : slow), s = int(in_runs ? slow : fast);
    memory[tile_place(s * tile.C + c)] = s < tile.pixels ? read(c, s) : 0.0f;
  }
  __syncthreads();
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) v[j] = memory[tile_place(tile.element(tile.runs, j))];
}

}  // namespace cuda
}  // namespace fastdiff
