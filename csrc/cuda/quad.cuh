// Quads: four consecutive logical elements of a sample, what one thread handles and one Philox block draws; or eight
// and two blocks, where no tensor's elements have more than 16 bits, so that the widest access is of 16 bytes.
//
// A warp keeps to one sample, and with tiles a block, so whatever depends on the sample alone is uniform over it.
#pragma once
#include <initializer_list>

#include "../philox.h"
#include "tile.cuh"

namespace fastdiff {
namespace cuda {

// How a kernel reaches its tensors, to the same bits. kVectors: each is contiguous and aligned, its quads are read and
// written whole. kTiles: each is aligned, a thread reads and writes as many consecutive elements of it, and the block
// exchanges them where they are not those that the thread computes. kElements: one by one, never kWide.
enum Access { kElements, kVectors, kTiles };

// How the quads of [B, C, S] are dealt out.
struct Walk {
  int64_t B, C, S;
  int64_t quads, warps;   // of a sample
  int32_t width;          // elements of a quad: kQuad or kWide
  int32_t by_pixel;       // neighbouring threads take neighbouring channels, not pixels; S is a multiple of kQuad
  int32_t tile_quads;     // of pixels, in a tile; 0: there can be none
  uint32_t tiles;         // of a sample
};

struct Quad {
  int64_t b, first;       // sample, logical index in it; kTiles: in the order of planes
  int64_t c, s;           // of the first element; kElements alone
  int64_t S;
  int count;              // elements that exist; kTiles: all, since no thread may leave
  Tile tile;              // kTiles alone
};

// The largest tiles that a block holds, or one for the sample.
static inline void cut_tiles(Walk& walk) {
  if (walk.S % walk.width != 0 || walk.C * walk.S == 0 || walk.C > kTileChannels) return;
  const int64_t warps = (walk.S / walk.width + kWarp - 1) / kWarp, most = kTileChannels / walk.C;
  const int64_t quads = (warps < most ? warps : most) * kWarp, tiles = (walk.S / walk.width + quads - 1) / quads;
  if (walk.B * tiles >= int64_t(1) << 31) return;
  walk.tile_quads = int32_t(quads);
  walk.tiles = uint32_t(tiles);
}

static inline Walk make_walk(int64_t B, int64_t C, int64_t S, int32_t layout, int32_t width = kQuad) {
  const int64_t quads = (C * S + width - 1) / width;
  Walk walk = {B, C, S, quads, (quads + kWarp - 1) / kWarp, width, layout == kChannelsLast && S % kQuad == 0, 0, 0};
  cut_tiles(walk);
  return walk;
}

// One thread a quad. A grid of 2^31 blocks would take more elements than a device holds samples of full warps.
static inline dim3 grid_of(const Walk& walk, Access access) {
  if (access == kTiles) return dim3(static_cast<unsigned>(walk.B * walk.tiles));
  return dim3(static_cast<unsigned>((walk.B * walk.warps + kWarpsPerBlock - 1) / kWarpsPerBlock));
}

static inline dim3 block_of(const Walk& walk, Access access) {
  return dim3(static_cast<unsigned>(access == kTiles ? walk.tile_quads * walk.C : kBlock));
}

// A tensor that a kernel reaches; NULL: it does not.
struct Operand {
  const void* data;
  int32_t dtype, layout;
};

static inline bool are_aligned(std::initializer_list<Operand> operands, int width = kQuad) {
  for (const Operand& each : operands)
    if (each.data && reinterpret_cast<uintptr_t>(each.data) % (width * dtype_size(each.dtype)) != 0) return false;
  return true;
}

// The access of tensors that are aligned.
static inline Access access_of_aligned(const Walk& walk, std::initializer_list<Operand> operands) {
  bool contiguous = true;
  for (const Operand& each : operands)
    contiguous = contiguous && (!each.data || each.layout == kChannelsFirst || walk.S == 1);
  if (contiguous) return walk.C * walk.S % walk.width == 0 ? kVectors : kElements;
  return walk.tile_quads ? kTiles : kElements;
}

static inline Access access_of(const Walk& walk, std::initializer_list<Operand> operands) {
  return are_aligned(operands, walk.width) ? access_of_aligned(walk, operands) : kElements;
}

static inline bool are_narrow(std::initializer_list<Operand> operands) {
  for (const Operand& each : operands)
    if (each.data && dtype_size(each.dtype) > 2) return false;
  return true;
}

// The walk, made wide, and its access where wide quads can be reached; else those of quads.
static inline Access widen_walk(Walk& walk, int32_t layout, std::initializer_list<Operand> operands,
                                bool allowed = true) {
  const Walk wide = make_walk(walk.B, walk.C, walk.S, layout, kWide);
  const Access access = allowed && are_narrow(operands) ? access_of(wide, operands) : kElements;
  if (access == kElements) return access_of(walk, operands);
  walk = wide;
  return access;
}

template <class Kernel>
static Kernel kernel_of(Access access, Kernel elements, Kernel vectors, Kernel tiles) {
  return access == kVectors ? vectors : access == kTiles ? tiles : elements;
}

// find(Width<N>{}), N the walk's width: kWide for 16-bit types alone.
template <int N>
struct Width {
  static constexpr int value = N;
};

template <class T, class Find>
static auto kernel_of(const Walk& walk, Find find) {
  if constexpr (sizeof(T) == 2)
    if (walk.width == kWide) return find(Width<kWide>{});
  return find(Width<kQuad>{});
}

// The thread's quad in a tile of a sample. home: the strides of the tensor in whose order the kernel computes.
template <int N = kQuad>
FD_DEVICE Quad place_tile(const Walk& walk, const Strides& home, uint32_t b, uint32_t index) {
  const uint32_t thread = threadIdx.x;
  const int pixels = walk.tile_quads * N;
  Quad q{};
  q.b = b;
  q.S = walk.S;
  Tile& tile = q.tile;
  tile.first = int64_t(index) * pixels;
  tile.pixels = walk.S - tile.first < pixels ? int(walk.S - tile.first) : pixels;
  tile.C = int(walk.C);
  tile.c = int(thread / uint32_t(walk.tile_quads));
  tile.s = int(thread - uint32_t(tile.c * walk.tile_quads)) * N;
  tile.runs = has_runs(home);
  tile.aligned = true;
  q.first = tile.c * walk.S + tile.first + tile.s;
  q.count = N;
  return q;
}

// A sample's quad by its number; kVectors and kElements.
template <int kAccess, int N = kQuad>
FD_DEVICE Quad place_quad(const Walk& walk, int64_t b, int64_t index) {
  Quad q{};
  q.S = walk.S;
  q.b = b;
  if (index >= walk.quads) return q;
  if (kAccess == kElements && walk.by_pixel) {
    q.s = divide(index, walk.C);
    q.c = index - q.s * walk.C;
    q.s *= kQuad;
    q.first = q.c * walk.S + q.s;
  } else {
    q.first = index * N;
    if (kAccess == kElements) {
      q.c = divide(q.first, walk.S);
      q.s = q.first - q.c * walk.S;
    }
  }
  const int64_t left = walk.C * walk.S - q.first;
  q.count = left < N ? int(left) : N;
  return q;
}

// This thread's quad: b = B past the end, count = 0 past the sample's.
template <int kAccess, int N = kQuad>
FD_DEVICE Quad find_quad(const Walk& walk, const Strides& home) {
  if (kAccess == kTiles) {
    const uint32_t b = blockIdx.x / walk.tiles;
    return place_tile<N>(walk, home, b, blockIdx.x - b * walk.tiles);
  }
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp, b = divide(warp, walk.warps);
  return place_quad<kAccess, N>(walk, b, (warp - b * walk.warps) * kWarp + threadIdx.x % kWarp);
}

// Offsets of a quad's elements in a tensor.
struct Offsets {
  int64_t at[kQuad];
};

FD_DEVICE Offsets offsets_of(const Strides& strides, const Quad& q) {
  Offsets offsets;
  int64_t c = q.c, s = q.s;
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    offsets.at[j] = q.b * strides.sample + c * strides.channel + s * strides.pixel;
    if (++s == q.S) s = 0, ++c;
  }
  return offsets;
}

FD_DEVICE int64_t vector_offset(const Strides& strides, const Quad& q) {
  return q.b * strides.sample + q.first;
}

// A tensor as a kernel reaches it, from an element on: with(use) is use(p), p a pointer to its dtype's type, one that T
// stands for. Only accesses differ by dtype: what is around them, exchanges above all, is compiled once.
template <class T, class Void>
struct Reached {
  Void* data;
  int32_t dtype;
  int64_t first;

  template <class Use>
  FD_MEMBER void with(const Use& use) const {
    with_dtype<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      use(static_cast<As<Void, U>*>(data) + first);
    });
  }
};

template <class T>
FD_DEVICE Reached<T, const void> reached(const void* data, int32_t dtype, int64_t first = 0) {
  return {data, dtype, first};
}

template <class T>
FD_DEVICE Reached<T, void> reached(void* data, int32_t dtype, int64_t first = 0) {
  return {data, dtype, first};
}

// The same where the type is known.
template <class T>
struct Typed {
  const T* data;

  template <class Use>
  FD_MEMBER void with(const Use& use) const { use(data); }
};

template <class T>
FD_DEVICE Typed<T> typed(const T* data) {
  return {data};
}

// Of a dtype that the kernel was not compiled for: wide quads are never of f32.
template <int N>
using Other = std::conditional_t<N == kQuad, Any, Narrow>;

template <class T, int N>
FD_DEVICE void load_elements(const T* p, const Offsets& offsets, int count, float (&v)[N]) {
  FD_UNROLL
  for (int j = 0; j < N; ++j) v[j] = j < count ? widen(load(p + offsets.at[j])) : 0.0f;
}

template <class T, int N>
FD_DEVICE void store_elements(T* p, const Offsets& offsets, int count, const float (&v)[N]) {
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    T value;
    narrow(v[j], value);
    if (j < count) store(p + offsets.at[j], value);
  }
}

template <int kAccess, class Source, int N>
FD_DEVICE void load_quad(const Source& source, const Strides& strides, const Quad& q, float (&v)[N]) {
  if constexpr (kAccess == kTiles) {
    const bool runs = has_runs(strides);
    const int64_t at = q.b * strides.sample + tile_offset<N>(q.tile, strides);
    if (q.tile.has<N>(runs)) source.with([&](auto* p) { load_vector(q.tile, p + at, v); });
    else fill_zeros(v);                                // what does not exist is exchanged as well
    if (runs != q.tile.runs) exchange(q.tile, runs, v);
  } else if constexpr (kAccess == kVectors) {
    const int64_t at = vector_offset(strides, q);
    source.with([&](auto* p) { load_floats(p + at, v); });
  } else {
    const Offsets offsets = offsets_of(strides, q);
    source.with([&](auto* p) { load_elements(p, offsets, q.count, v); });
  }
}

template <int kAccess, class Target, int N>
FD_DEVICE void store_quad(const Target& target, const Strides& strides, const Quad& q, const float (&v)[N]) {
  if constexpr (kAccess == kTiles) {
    const bool runs = has_runs(strides);
    const int64_t at = q.b * strides.sample + tile_offset<N>(q.tile, strides);
    float mine[N];
    FD_UNROLL
    for (int j = 0; j < N; ++j) mine[j] = v[j];
    if (runs != q.tile.runs) exchange(q.tile, q.tile.runs, mine);
    if (q.tile.has<N>(runs)) target.with([&](auto* p) { store_vector(q.tile, p + at, mine); });
  } else if constexpr (kAccess == kVectors) {
    const int64_t at = vector_offset(strides, q);
    target.with([&](auto* p) { store_floats(p + at, v); });
  } else {
    const Offsets offsets = offsets_of(strides, q);
    target.with([&](auto* p) { store_elements(p, offsets, q.count, v); });
  }
}

// The quad's normals.
template <int kAccess, int N>
FD_DEVICE void draw_quad(const int64_t* rng, const int64_t* sample_ids, uint32_t stream, const Quad& q,
                         float (&v)[N]) {
  const NoiseKey key = {uint32_t(load(sample_ids + q.b)), uint32_t(load(rng + 1)), stream, uint64_t(load(rng))};
  FD_UNROLL
  for (int k = 0; k < N; k += kQuad) {
    float drawn[kQuad];
    normals(key, uint32_t((q.first + k) / kQuad), drawn);
    FD_UNROLL
    for (int j = 0; j < kQuad; ++j) v[k + j] = drawn[j];
  }
  if (kAccess == kTiles && q.tile.runs) exchange(q.tile, false, v);
}

}  // namespace cuda
}  // namespace fastdiff
