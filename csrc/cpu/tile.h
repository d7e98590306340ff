// Elementwise kernels work on tiles: up to kTile elements of one sample, consecutive in the memory order of the op's
// state, as float (double for float64) in buffers that stay in the nearest cache. A tensor that already looks like that
// is used in place; any other dtype or layout is converted on the way in and out. Tiles are the fixed partition.
#pragma once
#include "convert.h"
#include "noise.h"
#include "parallel.h"

namespace fastdiff {
namespace FD_LEVEL {

constexpr int kTile = 1024;
constexpr int64_t kThreadElements = 16384;   // fewer are not worth another thread

// The shape of an op's state; `last` is channels_last where that differs from channels first.
struct Grid {
  int64_t B, C, S;
  bool last;
};

FD_SIMD Grid make_grid(int64_t B, int64_t C, int64_t S, int32_t layout) {
  return {B, C, S, layout == kChannelsLast && C > 1 && S > 1};
}

struct Tile {
  int64_t b, begin;
  int n;
};

template <class Body>
static inline void for_each_tile(const Grid& grid, int num_threads, const Body& body) {
  const int64_t elements = grid.C * grid.S, tiles = (elements + kTile - 1) / kTile;
  const int64_t useful = grid.B * elements / kThreadElements + 1;
  parallel_for(grid.B * tiles, num_threads < useful ? num_threads : int(useful), [&](int64_t i) {
    const int64_t begin = i % tiles * kTile, left = elements - begin;
    body(Tile{i / tiles, begin, int(left < kTile ? left : kTile)});
  });
}

// A tensor: element (b, c, s) lies at b * sample + c * channel + s * space.
struct View {
  void* data;
  int32_t dtype;
  int64_t sample, channel, space;
};

FD_SIMD View make_view(const void* data, int32_t dtype, int32_t layout, int64_t channels, int64_t S) {
  const bool last = layout == kChannelsLast;
  return {const_cast<void*>(data), dtype, channels * S, last ? 1 : S, last ? channels : 1};
}

FD_SIMD char* address(const View& view, int64_t b, int64_t c, int64_t s) {
  return static_cast<char*>(view.data) + (b * view.sample + c * view.channel + s * view.space) * dtype_size(view.dtype);
}

// Whether the view's elements follow one another as the grid's do.
FD_SIMD bool flat(const View& view, const Grid& grid) {
  const bool channel_fits = grid.C == 1 || view.channel == (grid.last ? 1 : grid.S);
  return channel_fits && (grid.S == 1 || view.space == (grid.last ? grid.C : 1));
}

// run(c, s, count, at): elements (c, s ... s + count - 1) stand at positions at, at + stride, ... of the tile; stride
// is C in channels_last and 1 otherwise. Runs do not cross the rows of W elements.
template <class Run>
static inline void for_each_run(const Grid& grid, const Tile& tile, int64_t W, const Run& run) {
  const int64_t end = tile.begin + tile.n;
  const int64_t first = grid.last ? 0 : tile.begin / grid.S, stop = grid.last ? grid.C : (end + grid.S - 1) / grid.S;
  for (int64_t c = first; c < stop; ++c) {
    const int64_t stride = grid.last ? grid.C : 1, origin = grid.last ? c : c * grid.S;
    int64_t s = tile.begin > origin ? (tile.begin - origin + stride - 1) / stride : 0;
    const int64_t s_tile = end > origin ? (end - origin + stride - 1) / stride : 0;
    const int64_t s_end = s_tile < grid.S ? s_tile : grid.S;
    while (s < s_end) {
      const int64_t row_end = s - s % W + W, next = row_end < s_end ? row_end : s_end;
      run(c, s, int(next - s), int(origin + s * stride - tile.begin));
      s = next;
    }
  }
}

template <class Real>
struct Buffer {
  alignas(64) Real at[kTile];
};

FD_SIMD bool is_real(const View& view, float) { return view.dtype == kF32; }
FD_SIMD bool is_real(const View& view, double) { return view.dtype == kF64; }

FD_SIMD char* flat_address(const View& view, const Tile& tile) {
  return static_cast<char*>(view.data) + (tile.b * view.sample + tile.begin) * dtype_size(view.dtype);
}

// Where the tile lies in a tensor that can be used in place, or NULL.
template <class Real>
FD_SIMD Real* in_place(const View& view, const Grid& grid, const Tile& tile) {
  const bool usable = is_real(view, Real()) && tile.n % Lanes<Real>::kCount == 0 && flat(view, grid);
  return usable ? reinterpret_cast<Real*>(flat_address(view, tile)) : nullptr;
}

// The tile of a tensor whose elements do not follow one another as the grid's do; mirrored over the rows of W elements.
template <class Real>
static inline const Real* gather(const View& view, const Grid& grid, const Tile& tile, int64_t W, bool mirrored,
                                 Buffer<Real>& buffer) {
  const int size = dtype_size(view.dtype);
  alignas(64) char raw[kTile * sizeof(double)];
  for_each_run(grid, tile, W, [&](int64_t c, int64_t s, int count, int at) {
    const int64_t start = mirrored ? s - s % W + W - 1 - s % W : s;
    copy_elements(size, address(view, tile.b, c, start), mirrored ? -view.space : view.space, raw + at * size,
                  grid.last ? grid.C : 1, count);
  });
  convert_in(raw, view.dtype, tile.n, buffer.at);
  return buffer.at;
}

// The tile of a tensor; the buffer is filled only where needed, up to a whole number of vectors.
template <class Real>
static inline const Real* fetch(const View& view, const Grid& grid, const Tile& tile, Buffer<Real>& buffer) {
  if (const Real* there = in_place<Real>(view, grid, tile)) return there;
  if (!flat(view, grid)) return gather(view, grid, tile, grid.S, false, buffer);
  convert_in(flat_address(view, tile), view.dtype, tile.n, buffer.at);
  return buffer.at;
}

// Writes the tile of a tensor, unless `values` already stand there.
template <class Real>
static inline void flush(const View& view, const Grid& grid, const Tile& tile, const Real* values) {
  if (flat(view, grid)) {
    char* to = flat_address(view, tile);
    if (to != reinterpret_cast<const char*>(values)) convert_out(values, view.dtype, tile.n, to);
    return;
  }
  const int size = dtype_size(view.dtype);
  alignas(64) char raw[kTile * sizeof(double)];
  convert_out(values, view.dtype, tile.n, raw);
  for_each_run(grid, tile, grid.S, [&](int64_t c, int64_t s, int count, int at) {
    copy_elements(size, raw + at * size, grid.last ? grid.C : 1, address(view, tile.b, c, s), view.space, count);
  });
}

// The tile's normals, in float.
static inline void draw(const NoiseKey& key, const Grid& grid, const Tile& tile, float* out) {
  if (!grid.last) return fill_normals(key, tile.begin, tile.n, out);
  for_each_run(grid, tile, grid.S, [&](int64_t c, int64_t s, int count, int at) {
    float run[kTile];
    fill_normals(key, c * grid.S + s, count, run);
    copy_elements(sizeof(float), run, 1, out + at, grid.C, count);
  });
}

FD_SIMD const float* draw_into(const NoiseKey& key, const Grid& grid, const Tile& tile, Buffer<float>& buffer) {
  draw(key, grid, tile, buffer.at);
  return buffer.at;
}

FD_SIMD const double* draw_into(const NoiseKey& key, const Grid& grid, const Tile& tile, Buffer<double>& buffer) {
  float normals[kTile];
  draw(key, grid, tile, normals);
  to_reals(normals, tile.n, buffer.at);
  return buffer.at;
}

FD_SIMD NoiseKey noise_key(const int64_t* rng, const int64_t* sample_ids, int64_t b, uint32_t stream) {
  return {uint32_t(sample_ids[b]), uint32_t(rng[1]), stream, uint64_t(rng[0])};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
