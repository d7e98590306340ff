// Dropout's mask: 1 where the counter RNG keeps an element, else 0, as elements of T, so that it is loaded like x.
#pragma once
#include "group_norm.h"
#include "noise.h"

namespace fastdiff {
namespace FD_LEVEL {

FD_SIMD vfloat ones_from(vuint words, uint32_t threshold) {
  return as_float((vuint)(words >= vuint{} + threshold) & as_uint(set1(1.0f)));
}

FD_SIMD void store(double* p, vfloat v) {
  for (int i = 0; i < kWidth; ++i) p[i] = v[i];
}

// Of the kBatch elements from a block on.
template <class T> FD_SIMD void store_kept(const Words& words, uint32_t threshold, T* out) {
  vfloat lower, upper;
  interleave(ones_from(words.even.a, threshold), ones_from(words.odd.a, threshold), lower, upper);
  store(out, lower), store(out + kWidth, upper);
  interleave(ones_from(words.even.b, threshold), ones_from(words.odd.b, threshold), lower, upper);
  store(out + 2 * kWidth, lower), store(out + 3 * kWidth, upper);
}

// out[j] = whether element first + j of the sample is kept, for j in [0, n).
template <class T>
static inline void fill_kept(const NoiseKey& key, int64_t first, int64_t n, uint32_t threshold, T* out) {
  const vwide lanes = lane_blocks();
  uint32_t block = uint32_t(first / 4);
  for (int skip = int(first % 4); n > 0; skip = 0) {
    T batch[kBatch];
    store_kept(draw_words(key, block, lanes), threshold, batch);
    const int count = int(n < kBatch - skip ? n : kBatch - skip);
    memcpy(out, batch + skip, count * sizeof(T));
    out += count, n -= count, block += kBatch / 4;
  }
}

// A sample's mask, where there is dropout.
template <class T> struct Mask {
  const Dropout& drop;
  NoiseKey key;
  int64_t S;

  Mask(const Dropout& drop, int64_t b, int64_t S) : drop(drop), key(), S(S) {
    if (drop.rng) key = {uint32_t(drop.sample_ids[b]), uint32_t(drop.rng[1]), drop.stream, uint64_t(drop.rng[0])};
  }

  // n elements in logical order from position s of channel c on.
  void run(int64_t c, int64_t s, int64_t n, T* out) const {
    if (drop.rng) fill_kept(key, c * S + s, n, drop.threshold, out);
  }

  // [rows, c1 - c0] of the positions from s on, as they lie channels last.
  void columns(int64_t c0, int64_t c1, int64_t s, int64_t rows, T* out) const {
    constexpr int64_t kRun = 64;
    if (!drop.rng) return;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t begin = 0; begin < rows; begin += kRun) {
        T kept[kRun];
        const int64_t n = rows - begin < kRun ? rows - begin : kRun;
        run(c, s + begin, n, kept);
        for (int64_t i = 0; i < n; ++i) out[(begin + i) * (c1 - c0) + c - c0] = kept[i];
      }
  }

  // v times the factor where it is kept, else 0.
  template <int N> FD_INLINE PackOf<T, N> apply(PackOf<T, N> v, PackOf<T, N> kept) const {
    const PackOf<T, N> zero = broadcast_pack<N>(Scalar<T>(0)), scaled = v * broadcast_pack<N>(Scalar<T>(drop.factor));
    FD_UNROLL
    for (int k = 0; k < N; ++k) v.v[k] = kept.v[k] != zero.v[k] ? scaled.v[k] : zero.v[k];
    return v;
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
