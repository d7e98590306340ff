// Losses: a sum of terms for each sample, and a gradient in the network's output, tile by tile in that output's order.
#pragma once
#include "../likelihood.h"
#include "tile.h"

namespace fastdiff {
namespace FD_LEVEL {

constexpr int64_t kChunkTiles = 16;   // of one sample; a sum of their terms is one number

template <class Real>
FD_SIMD typename Lanes<Real>::Value zero_or(const Real* values, int i, int count) {
  if (!values) return typename Lanes<Real>::Value{};
  return count == Lanes<Real>::kCount ? load(values + i) : load_first(values + i, count);
}

FD_SIMD double zero_or(const double* values, int i, int) { return values ? values[i] : 0; }

// term(i, count) of lanes i ... i + count - 1, count < kCount in the last vector alone. Sixteen chains or more, then pairs.
template <class Real, class Term>
FD_SIMD double sum_terms(int n, const Term& term) {
  constexpr int kCount = Lanes<Real>::kCount;
  typename Lanes<Real>::Value sums[4] = {};
  int i = 0;
  for (; i + 4 * kCount <= n; i += 4 * kCount)
    for (int j = 0; j < 4; ++j) sums[j] += term(i + j * kCount, kCount);
  for (int j = 0; i + kCount <= n; i += kCount, ++j) sums[j] += term(i, kCount);
  double total = 0;
  Real lanes[kCount];
  if (i < n) {
    store(lanes, term(i, n - i));
    for (int lane = 0; lane < n - i; ++lane) total += lanes[lane];
  }
  store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int lane = 0; lane < kCount; ++lane) total += lanes[lane];
  return total;
}

// out[b] = factor(b) * the sum of tile_sum over the sample's tiles. workspace: [B, chunks] doubles where there are several.
template <class Real, class TileSum, class Factor>
static inline void sum_samples(const Grid& grid, int num_threads, void* workspace, void* out, const TileSum& tile_sum,
                               const Factor& factor) {
  const int64_t elements = grid.C * grid.S, chunk = kChunkTiles * kTile;
  const int64_t chunks = elements > chunk ? (elements + chunk - 1) / chunk : 1;
  const int64_t useful = grid.B * elements / kThreadElements + 1;
  double* const partial = static_cast<double*>(workspace);
  parallel_for(grid.B * chunks, num_threads < useful ? num_threads : int(useful), [&](int64_t i) {
    const int64_t b = i / chunks, end = i % chunks * chunk + chunk, stop = end < elements ? end : elements;
    double total = 0;
    for (int64_t begin = end - chunk; begin < stop; begin += kTile)
      total += tile_sum(Tile{b, begin, int(stop - begin < kTile ? stop - begin : kTile)});
    if (chunks > 1) partial[i] = total;
    else static_cast<Real*>(out)[b] = Real(total * factor(b));
  });
  for (int64_t b = 0; chunks > 1 && b < grid.B; ++b) {
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += partial[b * chunks + i];
    static_cast<Real*>(out)[b] = Real(total * factor(b));
  }
}

template <class Real>
FD_SIMD double entry(const void* table, int64_t i) {
  return table ? double(static_cast<const Real*>(table)[i]) : 1;
}

// What makes a sample's mean of the sum of its terms.
template <class Real, class Params>
FD_SIMD double mean_factor(const Params& p, int64_t b) {
  return entry<Real>(p.weight, p.t[b]) * entry<Real>(p.sample_weight, b) / double(p.C * p.H * p.W);
}

template <class Params>
FD_SIMD Status check_timesteps(const Params& p) {
  for (int64_t b = 0; b < p.B; ++b)
    if (p.t[b] < 0 || p.t[b] >= p.T) return {kIndexOutOfRange, b, p.t[b]};
  return {};
}

// The channels of the network's output, or of a tensor like it, from first_channel = 0 or C on.
template <class Params>
FD_SIMD View model_view(const Params& p, const void* data, int64_t first_channel) {
  View view = make_view(data, p.model_dtype, p.model_layout, p.learned ? 2 * p.C : p.C, p.H * p.W);
  view.data = address(view, 0, first_channel, 0);
  return view;
}

// x_start's tile, mirrored where the sample is.
template <class Real, class Params>
FD_SIMD const Real* start_tile(const Params& p, const Grid& grid, const Tile& tile, Buffer<Real>& buffer) {
  const View view = make_view(p.x_start, p.x_start_dtype, p.x_start_layout, p.C, grid.S);
  const bool flip = p.flip && p.flip[tile.b];
  return flip ? gather(view, grid, tile, p.W, true, buffer) : fetch(view, grid, tile, buffer);
}

// Where to put a tile: the tensor itself if it can be used in place.
template <class Real>
FD_SIMD Real* target(const View& view, const Grid& grid, const Tile& tile, Buffer<Real>& buffer) {
  Real* const there = in_place<Real>(view, grid, tile);
  return there ? there : buffer.at;
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
