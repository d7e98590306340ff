// Clean images as kernels of training read them: of any dtype, bytes scaled, samples mirrored where they are flipped.
//
// Arguments have params p with x_start, x_start_dtype, flip and W, and x_start's strides.
#pragma once
#include "../step.h"
#include "quad.cuh"

namespace fastdiff {
namespace cuda {

// As Reached of Other<N>, or of bytes.
template <int N>
struct Images {
  const void* data;
  int32_t dtype;

  template <class Use>
  FD_MEMBER void with(const Use& use) const {
    if (dtype == kU8) use(static_cast<const uint8_t*>(data));
    else reached<Other<N>>(data, dtype).with(use);
  }
};

// Element i of a sample, or pixel i of a channel, mirrored within its line.
FD_DEVICE int64_t mirror(int64_t i, int64_t W) {
  const int64_t line = divide(i, W);
  return line * W + (line + 1) * W - 1 - i;
}

// Puts a stretch into shared memory, mirrored, by vectors of what lies side by side in the sample at element `first`.
template <int N, class Source>
FD_DEVICE void load_stretch(const Tile& tile, const Stretch& part, const Source& source, int64_t first,
                            const Strides& strides) {
  const Shared<float> memory = tile_memory();
  const int C = tile.C, per_pixel = has_runs(strides) ? C : 1, n = part.count * per_pixel;
  const int64_t from = part.from * strides.pixel;
  const int skipped = int(uint64_t(from) % N), vectors = (skipped + n + N - 1) / N;
  for (int i = tile.thread(); i < vectors * (C / per_pixel); i += blockDim.x) {
    const int plane = i / vectors, e = (i - plane * vectors) * N - skipped;
    float v[N];
    source.with([&](auto* p) { load_vector(tile, p + first + from + plane * strides.channel + e, v); });
    FD_UNROLL
    for (int j = 0; j < N; ++j) {
      if (uint32_t(e + j) >= uint32_t(n)) continue;
      const int pixel = (e + j) / per_pixel, c = plane + e + j - pixel * per_pixel, line = pixel / part.length;
      const int s = part.begin + (2 * line + 1) * part.length - 1 - pixel;
      memory[tile_place(s * C + c)] = v[j];
    }
  }
}

// The thread's elements of the sample at element `first` with each line of W pixels mirrored.
template <class Source, int N>
FD_DEVICE void load_mirrored_tile(const Tile& tile, const Source& source, int64_t first, const Strides& strides,
                                  int64_t W, float (&v)[N]) {
  const bool exists = tile.has<N>(tile.runs), runs = has_runs(strides);
  const int length = tile.pixels < W ? tile.pixels : int(W);
  if (int(W) % length == 0 && tile.pixels % length == 0) {  // lines, or a part of one, whose mirror image is another
    const int64_t column = length == W ? 0 : tile.first - divide(tile.first, W) * W, from = W - length - 2 * column;
    const int64_t at = first + from * strides.pixel + tile_offset<N>(tile, strides);
    fill_zeros(v);
    if (tile.has<N>(runs)) source.with([&](auto* p) { load_vector(tile, p + at, v); });
    __syncthreads();
    put_elements(tile, runs, v);
    __syncthreads();
    return exists ? take_mirrored(tile, length, v) : fill_zeros(v);
  }
  __syncthreads();
  for (int begin = 0; begin < tile.pixels;) {
    const Stretch part = find_stretch(tile, begin, W);
    load_stretch<N>(tile, part, source, first, strides);
    begin += part.count;
  }
  __syncthreads();
  if (exists) take_elements(tile, tile.runs, v);
  else fill_zeros(v);
}

// Where element j of the quad is in the mirrored sample: call(j, offset in it). A line is found once.
template <int kAccess, int N, class Call>
FD_DEVICE void each_mirrored(const Quad& q, const Strides& strides, int64_t W, const Call& call) {
  const int64_t pixel = kAccess == kVectors ? 1 : strides.pixel;
  int64_t c = q.c, s = kAccess == kVectors ? q.first : q.s, column = s - divide(s, W) * W;
  FD_UNROLL
  for (int j = 0; j < N; ++j) {
    call(j, (kAccess == kVectors ? 0 : c * strides.channel) + (s + W - 1 - 2 * column) * pixel);
    if (++column == W) column = 0;
    if (++s == q.S && kAccess != kVectors) s = 0, ++c;
  }
}

template <int kAccess, class Source, int N>
FD_DEVICE void load_mirrored(const Source& source, const Strides& strides, int64_t W, const Quad& q, float (&x0)[N]) {
  const int64_t first = q.b * strides.sample;
  if constexpr (kAccess == kTiles) {
    load_mirrored_tile(q.tile, source, first, strides, W, x0);
  } else if constexpr (kAccess == kElements) {
    Offsets offsets;
    each_mirrored<kAccess, N>(q, strides, W, [&](int j, int64_t at) { offsets.at[j] = first + at; });
    source.with([&](auto* p) { load_elements(p, offsets, q.count, x0); });
  } else {
    source.with([&](auto* p) {
      if (W % N == 0) {
        float backwards[N];
        load_floats(p + first + mirror(q.first + N - 1, W), backwards);
        FD_UNROLL
        for (int j = 0; j < N; ++j) x0[j] = backwards[N - 1 - j];
      } else {
        each_mirrored<kAccess, N>(q, strides, W, [&](int j, int64_t at) { x0[j] = widen(load(p + first + at)); });
      }
    });
  }
}

template <int kAccess, class Source, class Arguments, int N>
FD_DEVICE void load_start(const Source& source, const Arguments& a, const Quad& q, float (&x0)[N]) {
  if (a.p.flip && load(a.p.flip + q.b)) load_mirrored<kAccess>(source, a.x_start, a.p.W, q, x0);
  else load_quad<kAccess>(source, a.x_start, q, x0);
}

// x_start as x0, read from the mirrored column where the sample is flipped.
template <int kAccess, class Arguments, int N>
FD_DEVICE void load_start(const Arguments& a, const Quad& q, float (&x0)[N]) {
  const Images<N> source = {a.p.x_start, a.p.x_start_dtype};
  // Vectors are found and read in few instructions, which ask for the dtype once.
  if (kAccess == kVectors) source.with([&](auto* p) { load_start<kAccess>(typed(p), a, q, x0); });
  else load_start<kAccess>(source, a, q, x0);
  if (source.dtype != kU8) return;
  FD_UNROLL
  for (int j = 0; j < N; ++j) x0[j] = scale_byte(x0[j]);
}

// A coefficient of the sample's t; NaN where there is none.
FD_DEVICE float coefficient(const void* table, int64_t t, int64_t T) {
  return t < 0 || t >= T ? nanf("") : load(static_cast<const float*>(table) + t);
}

}  // namespace cuda
}  // namespace fastdiff
