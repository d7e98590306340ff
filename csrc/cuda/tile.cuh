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

struct Tile {
  int64_t first;      // pixel
  int32_t pixels;     // that exist
  int32_t C, c, s;    // in planes: the thread's channel, and its first pixel counted from `first`
  bool runs;          // the order that the kernel computes in
  bool aligned;       // whether vectors can be reached; else they are element by element

  FD_MEMBER int thread() const { return int(threadIdx.x); }

  FD_MEMBER Tile in_runs() const {
    Tile tile = *this;
    tile.runs = true;
    return tile;
  }

  // Whether the thread's elements exist.
  template <int N>
  FD_MEMBER bool has(bool in_runs) const { return in_runs ? thread() * N < pixels * C : s < pixels; }
};

// Shared memory has a gap every kWarp elements, which spreads strides of powers of two over the banks.
constexpr int kTileMemory = kBlock * kWide + kBlock * kWide / kWarp;

FD_DEVICE Shared<float> tile_memory() {
  FD_SHARED(float, memory, kTileMemory);
  return memory;
}

// Where element i is in it.
FD_DEVICE int tile_place(int i) { return i + int(uint32_t(i) / kWarp); }

// Where the thread's elements are: call(j, place in it).
template <int N, class Call>
FD_DEVICE void each_element(const Tile& tile, bool in_runs, const Call& call) {
  const int run = in_runs ? tile_place(tile.thread() * N) : 0, plane = in_runs ? 0 : afresh(tile.s * tile.C + tile.c);
  FD_UNROLL
  for (int j = 0; j < N; ++j) call(j, in_runs ? run + j : tile_place(plane + j * tile.C));
}

// Puts the thread's elements there, or takes them.
template <int N>
FD_DEVICE void put_elements(const Tile& tile, bool in_runs, const float (&v)[N]) {
  const Shared<float> memory = tile_memory();
  if (in_runs) each_element<N>(tile, true, [&](int j, int place) { memory[place] = v[j]; });
  else each_element<N>(tile, false, [&](int j, int place) { memory[place] = v[j]; });
}

template <int N>
FD_DEVICE void take_elements(const Tile& tile, bool in_runs, float (&v)[N]) {
  const Shared<float> memory = tile_memory();
  if (in_runs) each_element<N>(tile, true, [&](int j, int place) { v[j] = memory[place]; });
  else each_element<N>(tile, false, [&](int j, int place) { v[j] = memory[place]; });
}

// From planes to runs, or back.
template <int N>
FD_DEVICE void exchange(const Tile& tile, bool from_runs, float (&v)[N]) {
  __syncthreads();                                    // it may still be read
  put_elements(tile, from_runs, v);
  __syncthreads();
  take_elements(tile, !from_runs, v);
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

// A tile of a tensor [B, 2C, S], channels last, as it lies there: of two halves, C channels each.
constexpr int kPairVector = 16;       // bytes of an access

FD_DEVICE Shared<Vec<uint32_t, 4>> pair_memory() {
  typedef Vec<uint32_t, 4> Vector;
  FD_SHARED(Vector, memory, 2 * kBlock);
  return memory;
}

// call(k, i) for each of the thread's vectors, k in shared memory, its first element i in the tensor's tile.
template <class T, int N, class Call>
FD_DEVICE void each_pair_vector(const Tile& tile, const Call& call) {
  constexpr int V = kPairVector / sizeof(T);
  FD_UNROLL
  for (int round = 0; round < 2 * N / V; ++round) {
    const int k = round * int(blockDim.x) + tile.thread();
    if (k * V < tile.pixels * 2 * tile.C) call(k, k * V);
  }
}

// call(j, first, second) with where the thread's elements of both halves are.
template <class T, int N, class Call>
FD_DEVICE void each_of_pair(const Tile& tile, const Call& call) {
  const int i = tile.thread() * N, pixel = tile.runs ? int(uint32_t(i) / uint32_t(tile.C)) : tile.s;
  const int step = tile.runs ? 1 : 2 * tile.C;
  int c = tile.runs ? i - pixel * tile.C : tile.c;
  Shared<T> at = seen_as<T>(pair_memory()) + (2 * pixel * tile.C + c);
  if (!tile.runs) c = -N;                             // the next pixel's is a step away
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    call(j, at, at + tile.C);
    at = at + step;
    if (++c == tile.C) c = 0, at = at + tile.C;
  }
}

template <class T>
FD_DEVICE bool has_pair_vectors(const Tile& tile, const T* p) {
  return tile.aligned && reinterpret_cast<uintptr_t>(p) % kPairVector == 0;
}

// The thread's elements of both halves of the sample at element `at`, of the dtype; 0 where there are none.
template <class T, int N>
FD_DEVICE void load_pair(const Tile& tile, const void* data, int32_t dtype, int64_t at, float (&v)[N], float (&w)[N]) {
  constexpr int V = kPairVector / sizeof(T);
  const T* const p = static_cast<const T*>(data) + (at + tile.first * 2 * tile.C);
  const bool aligned = has_pair_vectors(tile, p);
  const Shared<Vec<uint32_t, 4>> memory = pair_memory();
  __syncthreads();                                    // it may still be read
  each_pair_vector<T, N>(tile, [&](int k, int i) {
    memory[k] = aligned ? load_words<T, V>(p + i) : gather_words<T, V>(p + i);
  });
  __syncthreads();
  if (!tile.has<N>(tile.runs)) return fill_zeros(v), fill_zeros(w);
  with_dtype<T>(dtype, [&](auto type) {
    typedef typename decltype(type)::Is U;
    each_of_pair<T, N>(tile, [&](int j, Shared<T> first, Shared<T> second) {
      v[j] = widen(same_bits<U>(T(first[0]))), w[j] = widen(same_bits<U>(T(second[0])));
    });
  });
}

// Writes both halves of that sample, of which the thread has its elements in v and w.
template <class T, int N>
FD_DEVICE void store_pair(const Tile& tile, void* data, int32_t dtype, int64_t at, const float (&v)[N],
                          const float (&w)[N]) {
  constexpr int V = kPairVector / sizeof(T);
  T* const p = static_cast<T*>(data) + (at + tile.first * 2 * tile.C);
  const bool aligned = has_pair_vectors(tile, p);
  const Shared<Vec<uint32_t, 4>> memory = pair_memory();
  __syncthreads();
  if (tile.has<N>(tile.runs))
    with_dtype<T>(dtype, [&](auto type) {
      each_of_pair<T, N>(tile, [&](int j, Shared<T> first, Shared<T> second) {
        typename decltype(type)::Is one, other;
        narrow(v[j], one), narrow(w[j], other);
        first[0] = same_bits<T>(one), second[0] = same_bits<T>(other);
      });
    });
  __syncthreads();
  each_pair_vector<T, N>(tile, [&](int k, int i) {
    const Words<T, V> words = memory[k];
    if (aligned) store_words<T, V>(p + i, words);
    else scatter_words<T, V>(p + i, words);
  });
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

// Takes the thread's elements of the tile with each line of `length` pixels mirrored.
template <int N>
FD_DEVICE void take_mirrored(const Tile& tile, int length, float (&v)[N]) {
  const Shared<float> memory = tile_memory();
  const int C = tile.C, i = tile.thread() * N;
  const int pixel = tile.runs ? int(uint32_t(i) / uint32_t(C)) : tile.s;
  int c = tile.runs ? i - pixel * C : tile.c, column = int(uint32_t(pixel) % uint32_t(length));
  int at = (pixel + length - 1 - 2 * column) * C + c;
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    v[j] = memory[tile_place(at)];
    if (tile.runs) {
      ++at;
      if (++c < C) continue;
      c = 0, at -= C;
    }
    at -= C;
    if (++column == length) column = 0, at += 2 * length * C;
  }
}

}  // namespace cuda
}  // namespace fastdiff
