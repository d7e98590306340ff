// Dropout from the counter RNG: element i of a sample, in logical order, is kept where word i % 4 of block i / 4 is not
// below a threshold. One text for the device and the host's scalars; cpu/dropout.h has the vectors.
#pragma once
#include "philox.h"

namespace fastdiff {
namespace FD_SPACE {

constexpr int kMaskBits = 32;          // of a word of a mask

// Of count <= kMaskBits elements from element `first` on: bit j is set where element first + j is kept.
FD_FN uint32_t kept_bits(const NoiseKey& key, int64_t first, int count, uint32_t threshold) {
  const int skipped = int(first & 3), blocks = (skipped + count + 3) / 4;
  uint64_t bits = 0;
  for (int i = 0; i < blocks; ++i) {
    uint32_t c[4] = {uint32_t(first / 4) + uint32_t(i), key.sample, key.draw, key.stream};
    philox(c, uint32_t(key.seed), uint32_t(key.seed >> 32));
    FD_UNROLL
    for (int word = 0; word < 4; ++word) bits |= uint64_t(c[word] >= threshold) << (4 * i + word);
  }
  return uint32_t(bits >> skipped);
}

}  // namespace FD_SPACE
}  // namespace fastdiff
