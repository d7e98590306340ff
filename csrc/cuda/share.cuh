// Samples dealt out to blocks: a block keeps to one sample, a thread takes several quads of it, and the k-th of
// neighbouring threads lie side by side. What is known of a sample alone costs an element so much less.
#pragma once
#include "quad.cuh"

namespace fastdiff {
namespace cuda {

// Blocks of a sample, their threads, and how many quads a thread takes at most; kTiles: how many tiles a block does.
struct Share {
  uint32_t blocks;
  int32_t threads, quads;
  int32_t length;         // quads or tiles of a block
};

static inline Share make_share(const Walk& walk, Access access, int quads) {
  const int32_t tile = int32_t(walk.tile_quads * walk.C);
  if (access == kTiles) return {uint32_t((walk.tiles + quads - 1) / quads), tile, quads, quads};
  const int64_t warps = (walk.quads + quads * kWarp - 1) / (quads * kWarp);
  const int64_t blocks = (warps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const int32_t threads = int32_t((warps + blocks - 1) / blocks * kWarp);
  return {uint32_t(blocks), threads, quads, threads * quads};
}

// A launch refuses a grid of 2^31 blocks, and 2^32 - 1 stand for any that are more.
static inline dim3 grid_of(const Walk& walk, const Share& share) {
  const int64_t blocks = walk.B * int64_t(share.blocks), most = 0xffffffff;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// The block's sample, and the number in it of the thread's first quad; kTiles: of the block's first tile.
struct Start {
  uint32_t b;
  int64_t index;
};

template <int kAccess>
FD_DEVICE Start find_start(const Share& share) {
  const uint32_t b = blockIdx.x / share.blocks, block = blockIdx.x - b * share.blocks;
  return {b, int64_t(block) * share.length + (kAccess == kTiles ? 0 : int(threadIdx.x))};
}

// A sample's quad by its number; kVectors.
template <int N>
FD_DEVICE Quad vector_quad(const Walk& walk, uint32_t b, int64_t index) {
  Quad q{};
  q.b = b;
  q.S = walk.S;
  q.first = settled(index * N);   // else a loop's addresses are advanced one by one, and accesses fall apart
  q.count = N;
  return q;
}

// Where the thread's quads end; not kTiles.
FD_DEVICE int64_t end_of(const Walk& walk, const Share& share, const Start& start) {
  const int64_t end = start.index + share.length;
  return end < walk.quads ? end : walk.quads;
}

// The thread's quad k steps on; kTiles: that in the k-th of the block's tiles. kVectors: where the sample has ended,
// count is 0 and the address that of the first, which the thread may read.
template <int kAccess, int N>
FD_DEVICE Quad quad_of(const Walk& walk, const Share& share, const Strides& home, const Start& start, int k) {
  if constexpr (kAccess == kTiles) return place_tile<N>(walk, home, start.b, uint32_t(start.index) + k);
  const int64_t index = start.index + k * share.threads;
  if constexpr (kAccess == kElements) return place_quad<kAccess, N>(walk, start.b, index);
  Quad q = vector_quad<N>(walk, start.b, index < walk.quads ? index : start.index);
  if (index >= walk.quads) q.count = 0;
  return q;
}

}  // namespace cuda
}  // namespace fastdiff
