// float16 and bfloat16 as plain bit patterns, for host and device, and their exact conversions.
#pragma once
#include <cstdint>
#include <cstring>

#include "params.h"

// Internal linkage: an external inline function compiled for AVX-512 could be merged into the baseline by the linker.
#ifdef __CUDACC__
#define FD_FN static __host__ __device__ __forceinline__
#else
#define FD_FN static inline __attribute__((always_inline, unused))
#endif

namespace fastdiff {

struct half_t { uint16_t bits; };
struct bfloat16_t { uint16_t bits; };

FD_FN float bits_to_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
FD_FN uint32_t float_to_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

FD_FN float to_float(float v) { return v; }
FD_FN float to_float(uint8_t v) { return float(v); }
FD_FN float to_float(bfloat16_t v) { return bits_to_float(uint32_t(v.bits) << 16); }

FD_FN float to_float(half_t v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return bits_to_float(sign | float_to_bits(subnormal));
}

// Round to nearest even; NaN stays NaN.
FD_FN bfloat16_t to_bfloat16(float v) {
  const uint32_t u = float_to_bits(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t(u >> 16 | 0x40u)};
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

FD_FN half_t to_half(float v) {
  const uint32_t u = float_to_bits(v);
  const uint32_t sign = u >> 16 & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};   // rounds past 65504
  if (magnitude < 0x38800000u) {                                     // subnormal: let float addition round
    const float shifted = bits_to_float(magnitude) + 0.5f;           // ulp of 0.5 is 2^-24
    return {uint16_t(sign | (float_to_bits(shifted) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13))};
}

FD_FN void from_float(float v, float& out) { out = v; }
FD_FN void from_float(float v, half_t& out) { out = to_half(v); }
FD_FN void from_float(float v, bfloat16_t& out) { out = to_bfloat16(v); }

FD_FN int dtype_size(int32_t dtype) {
  return dtype == kF64 ? 8 : dtype == kF32 ? 4 : dtype == kU8 ? 1 : 2;
}

}  // namespace fastdiff
