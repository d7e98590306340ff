// Clean images as kernels of training read them: of any dtype, bytes scaled, samples mirrored where they are flipped.
//
// Arguments have params p with x_start, x_start_dtype, flip and W, and x_start's strides.
#pragma once
#include "../step.h"
#include "quad.cuh"

namespace fastdiff {
namespace cuda {

// Element i of a sample, or pixel i of a channel, mirrored within its line.
FD_DEVICE int64_t mirror(int64_t i, int64_t W) {
  const int64_t line = divide(i, W);
  return line * W + (line + 1) * W - 1 - i;
}

template <int kAccess, class T, class Arguments, int N>
FD_DEVICE void load_mirrored(const Arguments& a, const Quad& q, float (&x0)[N]) {
  const T* const p = static_cast<const T*>(a.p.x_start) + q.b * a.x_start.sample;
  if constexpr (kAccess == kTiles) {
    load_mirrored_tile(q.tile, p, a.x_start, a.p.W, x0);
  } else if (kAccess == kVectors && a.p.W % N == 0) {
    float backwards[N];
    load_floats(p + mirror(q.first + N - 1, a.p.W), backwards);
    FD_UNROLL
    for (int j = 0; j < N; ++j) x0[j] = backwards[N - 1 - j];
  } else {
    FD_UNROLL
    for (int j = 0; j < N; ++j) {
      const int64_t i = j < q.count ? q.first + j : q.first, c = divide(i, q.S);
      x0[j] = widen(load(p + c * a.x_start.channel + (mirror(i, a.p.W) - c * q.S) * a.x_start.pixel));
    }
  }
}

// x_start as x0, read from the mirrored column where the sample is flipped.
template <int kAccess, class T, class Arguments, int N>
FD_DEVICE void load_start(const Arguments& a, const Quad& q, float (&x0)[N]) {
  if (a.p.flip && load(a.p.flip + q.b)) load_mirrored<kAccess, T>(a, q, x0);
  else load_quad<kAccess, T>(a.p.x_start, a.x_start, q, x0);
}

template <int kAccess, class Arguments, int N>
FD_DEVICE void load_start(const Arguments& a, const Quad& q, float (&x0)[N]) {
  const int32_t dtype = a.p.x_start_dtype;
  if (dtype == kU8) {
    load_start<kAccess, uint8_t>(a, q, x0);
    FD_UNROLL
    for (int j = 0; j < N; ++j) x0[j] = scale_byte(x0[j]);
    return;
  }
  if constexpr (N == kQuad)
    if (dtype == kF32) return load_start<kAccess, float>(a, q, x0);
  if (dtype == kF16) return load_start<kAccess, half_t>(a, q, x0);
  load_start<kAccess, bfloat16_t>(a, q, x0);
}

// A coefficient of the sample's t; NaN where there is none.
FD_DEVICE float coefficient(const void* table, int64_t t, int64_t T) {
  return t < 0 || t >= T ? nanf("") : load(static_cast<const float*>(table) + t);
}

}  // namespace cuda
}  // namespace fastdiff
