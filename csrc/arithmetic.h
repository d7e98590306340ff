// The functions that the per-element formulas of philox.h and step.h are written in, over float and double here and
// over vfloat in cpu/simd.h, so that one text serves the device, the host's scalars and its vectors.
#pragma once
#include "dtype.h"

// The formulas live in the namespace of what they are compiled for: a SIMD level, whose functions they call, or cuda.
#ifdef FD_LEVEL
#include "cpu/simd.h"
#define FD_SPACE FD_LEVEL
#else
#include <math.h>
#define FD_SPACE cuda
#endif

// nvcc's host pass knows neither pragma.
#if defined(__CUDA_ARCH__) || defined(__clang__)
#define FD_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FD_UNROLL
#else
#define FD_UNROLL _Pragma("GCC unroll 32")
#endif

namespace fastdiff {
namespace FD_SPACE {

#ifdef FD_LEVEL
FD_FN float sqrt(float v) { return __builtin_sqrtf(v); }
FD_FN float exp(float v) { return __builtin_expf(v); }
FD_FN double exp(double v) { return __builtin_exp(v); }
FD_FN double log(double v) { return __builtin_log(v); }
FD_FN double erfc(double v) { return __builtin_erfc(v); }

FD_FN vfloat where(vint condition, vfloat if_true, vfloat if_false) { return condition ? if_true : if_false; }
FD_FN vfloat magnitude(vfloat v) { return as_float(as_uint(v) & 0x7fffffffu); }
#else
// a * b + c, rounded once.
FD_FN float madd(float a, float b, float c) { return ::fmaf(a, b, c); }
FD_FN double madd(double a, double b, double c) { return ::fma(a, b, c); }

FD_FN float sqrt(float v) { return ::sqrtf(v); }
FD_FN float exp(float v) { return ::expf(v); }
FD_FN double exp(double v) { return ::exp(v); }
FD_FN double log(double v) { return ::log(v); }
FD_FN double erfc(double v) { return ::erfc(v); }
#endif

// if_true where the condition holds.
FD_FN float where(bool condition, float if_true, float if_false) { return condition ? if_true : if_false; }
FD_FN double where(bool condition, double if_true, double if_false) { return condition ? if_true : if_false; }

FD_FN float magnitude(float v) { return __builtin_fabsf(v); }
FD_FN double magnitude(double v) { return __builtin_fabs(v); }

// if_set where the highest bit is.
FD_FN float select(uint32_t bits, float if_set, float if_clear) { return bits >> 31 ? if_set : if_clear; }

// v limited to [-bound, bound]; NaN passes.
FD_FN float clip(float v, float bound) { return v > bound ? bound : v < -bound ? -bound : v; }
FD_FN double clip(double v, double bound) { return v > bound ? bound : v < -bound ? -bound : v; }

FD_FN float as_float(uint32_t v) { return bits_to_float(v); }
FD_FN uint32_t as_uint(float v) { return float_to_bits(v); }
FD_FN float int_to_float(int32_t v) { return float(v); }
FD_FN int32_t as_int(uint32_t v) { return int32_t(v); }
FD_FN float uint_to_float(uint32_t v) { return float(v); }

// a * b as two words.
FD_FN void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#ifdef __CUDA_ARCH__
  asm("{.reg .b64 p; mul.wide.u32 p, %2, %3; mov.b64 {%0, %1}, p;}" : "=r"(low), "=r"(high) : "r"(a), "r"(b));
#else
  const uint64_t product = uint64_t(a) * b;
  high = uint32_t(product >> 32);
  low = uint32_t(product);
#endif
}

}  // namespace FD_SPACE
}  // namespace fastdiff
