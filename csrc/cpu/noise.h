// Runs of normals of one sample, kWidth / 2 Philox blocks at a time.
#pragma once
#include "../philox.h"
#include "twice.h"

namespace fastdiff {
namespace FD_LEVEL {

constexpr int kBlocks = kWidth / 2;       // of a vector of words
constexpr int kBatch = 8 * kBlocks;       // normals of two such vectors

// The 32-bit lanes a0 b0 a1 b1 ... of each 128 bits' lower and upper half.
FD_SIMD void interleave(vfloat a, vfloat b, vfloat& lower, vfloat& upper) {
#if defined(__AVX512F__)
  lower = (vfloat)_mm512_unpacklo_ps((__m512)a, (__m512)b);
  upper = (vfloat)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  lower = (vfloat)_mm256_unpacklo_ps((__m256)a, (__m256)b);
  upper = (vfloat)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#else
  lower = vfloat{a[0], b[0], a[1], b[1]};
  upper = vfloat{a[2], b[2], a[3], b[3]};
#endif
}

// Lane 2j computes block j, lane 2j + 1 block kBlocks / 2 + j: so that interleaving the cosines and sines of the words
// (0, 2) and (1, 3), packed lane by lane, puts them in order.
FD_SIMD vwide lane_blocks() {
  vwide blocks;
  for (int lane = 0; lane < kBlocks; ++lane) blocks[lane] = lane / 2 + lane % 2 * (kBlocks / 2);
  return blocks;
}

FD_SIMD Twice<vuint> pack(Twice<vwide> a, Twice<vwide> b) { return {pack(a.a, b.a), pack(a.b, b.b)}; }

FD_SIMD Twice<vwide> both(uint32_t word) { return {vwide{} + word, vwide{} + word}; }

// Words (0, 2) and (1, 3) of the blocks of one batch.
struct Words {
  Twice<vuint> even, odd;
};

FD_SIMD Words draw_words(const NoiseKey& key, uint32_t block, vwide lanes) {
  const vwide blocks = lanes + block;
  Twice<vwide> c[4] = {{blocks, blocks + kBlocks}, both(key.sample), both(key.draw), both(key.stream)};
  philox(c, vwide{} + key.seed, vwide{} + (key.seed >> 32));
  return {pack(c[0], c[2]), pack(c[1], c[3])};
}

FD_SIMD void store_normals(const Words& words, float* out) {
  Twice<vfloat> cosine, sine;
  box_muller(words.even, words.odd, cosine, sine);
  vfloat lower, upper;
  interleave(cosine.a, sine.a, lower, upper);
  store(out, lower);
  store(out + kWidth, upper);
  interleave(cosine.b, sine.b, lower, upper);
  store(out + 2 * kWidth, lower);
  store(out + 3 * kWidth, upper);
}

// The normals of `batches` <= kBatches batches from a block on. Words first, then normals: each loop alone is short
// enough for the processor to overlap its iterations.
constexpr int kBatches = 8;

static inline void normals(const NoiseKey& key, uint32_t block, int batches, float* out) {
  Words words[kBatches];
  const vwide lanes = lane_blocks();
  for (int i = 0; i < batches; ++i) words[i] = draw_words(key, block + uint32_t(i * 2 * kBlocks), lanes);
  for (int i = 0; i < batches; ++i) store_normals(words[i], out + i * kBatch);
}

// out[j] = normal begin + j of the sample, for j in [0, n).
static inline void fill_normals(const NoiseKey& key, int64_t begin, int n, float* out) {
  uint32_t block = uint32_t(begin / 4);
  int skip = int(begin % 4);                                        // only the first block may start inside
  while (n > 0) {
    const int whole = skip ? 0 : n / kBatch;
    const int batches = whole < kBatches ? whole : kBatches;
    int count = batches * kBatch;
    if (batches > 0) {
      normals(key, block, batches, out);
    } else {
      float batch[kBatch];
      normals(key, block, 1, batch);
      count = n < kBatch - skip ? n : kBatch - skip;
      memcpy(out, batch + skip, count * sizeof(float));
    }
    block += uint32_t(skip + count) / 4;
    out += count;
    n -= count;
    skip = 0;
  }
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
