// Quads: four consecutive logical elements of a sample, what one thread handles and one Philox block draws.
//
// A warp keeps to one sample, so whatever depends on the sample alone is uniform over it. kVector: every tensor is
// contiguous and aligned, its quads are read and written whole; otherwise element by element, to the same bits.
#pragma once
#include "../philox.h"
#include "common.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kQuad = 4, kBlock = 256, kWarpsPerBlock = kBlock / kWarp;

FD_DEVICE int64_t divide(int64_t n, int64_t d) {
  return (n | d) >> 32 ? n / d : int64_t(uint32_t(n) / uint32_t(d));
}

// How the quads of [B, C, S] are dealt out.
struct Walk {
  int64_t B, C, S;
  int64_t quads, warps;   // of a sample
  int32_t by_pixel;       // neighbouring threads take neighbouring channels, not pixels; S is a multiple of kQuad
};

// Elements from one sample, channel, pixel to the next.
struct Strides {
  int64_t sample, channel, pixel;
};

struct Quad {
  int64_t b, first;       // sample, logical index in it
  int64_t c, s;           // of the first element; not set for a vector kernel
  int64_t S;
  int count;              // elements that exist
};

static inline Walk make_walk(int64_t B, int64_t C, int64_t S, int32_t layout) {
  const int64_t quads = (C * S + kQuad - 1) / kQuad;
  return {B, C, S, quads, (quads + kWarp - 1) / kWarp, layout == kChannelsLast && S % kQuad == 0};
}

// One thread a quad. A grid of 2^31 blocks would take more elements than a device holds samples of full warps.
static inline dim3 grid_of(const Walk& walk) {
  return dim3(static_cast<unsigned>((walk.B * walk.warps + kWarpsPerBlock - 1) / kWarpsPerBlock));
}

static inline Strides make_strides(int32_t layout, int64_t C, int64_t S) {
  return layout == kChannelsLast ? Strides{C * S, 1, C} : Strides{C * S, S, 1};
}

// Whether the quads of a tensor are vectors: NULL is never read.
static inline bool has_vectors(const void* data, int32_t dtype, int32_t layout, const Walk& walk) {
  if (!data) return true;
  const bool contiguous = layout == kChannelsFirst || walk.S == 1;
  return contiguous && walk.C * walk.S % kQuad == 0 && reinterpret_cast<uintptr_t>(data) % (kQuad * dtype_size(dtype)) == 0;
}

// This thread's quad: b = B past the end, count = 0 past the sample's.
template <bool kVector>
FD_DEVICE Quad find_quad(const Walk& walk) {
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  Quad q{};
  q.S = walk.S;
  q.b = divide(warp, walk.warps);
  const int64_t index = (warp - q.b * walk.warps) * kWarp + threadIdx.x % kWarp;
  if (index >= walk.quads) return q;
  if (!kVector && walk.by_pixel) {
    q.s = divide(index, walk.C);
    q.c = index - q.s * walk.C;
    q.s *= kQuad;
    q.first = q.c * walk.S + q.s;
  } else {
    q.first = index * kQuad;
    if (!kVector) {
      q.c = divide(q.first, walk.S);
      q.s = q.first - q.c * walk.S;
    }
  }
  const int64_t left = walk.C * walk.S - q.first;
  q.count = left < kQuad ? int(left) : kQuad;
  return q;
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
  return q.b * strides.sample + (strides.channel ? q.first : q.first - divide(q.first, q.S) * q.S);
}

template <bool kVector, class T>
FD_DEVICE void load_quad(const void* data, const Strides& strides, const Quad& q, float (&v)[kQuad]) {
  const T* const p = static_cast<const T*>(data);
  if (kVector) return load_floats(p + vector_offset(strides, q), v);
  const Offsets offsets = offsets_of(strides, q);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) v[j] = j < q.count ? widen(load(p + offsets.at[j])) : 0.0f;
}

template <bool kVector, class T>
FD_DEVICE void store_quad(void* data, const Strides& strides, const Quad& q, const float (&v)[kQuad]) {
  T* const p = static_cast<T*>(data);
  if (kVector) return store_floats(p + vector_offset(strides, q), v);
  const Offsets offsets = offsets_of(strides, q);
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    T value;
    narrow(v[j], value);
    if (j < q.count) store(p + offsets.at[j], value);
  }
}

// The same with a dtype that the kernel was not compiled for: f32, f16 or bf16.
template <bool kVector>
FD_DEVICE void load_quad(int32_t dtype, const void* data, const Strides& strides, const Quad& q, float (&v)[kQuad]) {
  if (dtype == kF32) load_quad<kVector, float>(data, strides, q, v);
  else if (dtype == kF16) load_quad<kVector, half_t>(data, strides, q, v);
  else load_quad<kVector, bfloat16_t>(data, strides, q, v);
}

template <bool kVector>
FD_DEVICE void store_quad(int32_t dtype, void* data, const Strides& strides, const Quad& q, const float (&v)[kQuad]) {
  if (dtype == kF32) store_quad<kVector, float>(data, strides, q, v);
  else if (dtype == kF16) store_quad<kVector, half_t>(data, strides, q, v);
  else store_quad<kVector, bfloat16_t>(data, strides, q, v);
}

// The quad's normals.
FD_DEVICE void draw_quad(const int64_t* rng, const int64_t* sample_ids, uint32_t stream, const Quad& q,
                         float (&v)[kQuad]) {
  const NoiseKey key = {uint32_t(load(sample_ids + q.b)), uint32_t(load(rng + 1)), stream, uint64_t(load(rng))};
  normals(key, uint32_t(q.first / kQuad), v);
}

}  // namespace cuda
}  // namespace fastdiff
