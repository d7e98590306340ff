// The functions that the per-element formulas of philox.h and step.h are written in, over float and double here and over
// vfloat in cpu/simd.h, so that one text serves the device, the host's scalars and its vectors.
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

namespace fastdiff {
namespace FD_SPACE {

#ifndef FD_LEVEL
// a * b + c, rounded once.
FD_FN float madd(float a, float b, float c) { return ::fmaf(a, b, c); }
FD_FN double madd(double a, double b, double c) { return ::fma(a, b, c); }
#endif

FD_FN float sqrt(float v) { return ::sqrtf(v); }
FD_FN float exp(float v) { return ::expf(v); }
FD_FN double exp(double v) { return ::exp(v); }

FD_FN float select(bool condition, float if_true, float if_false) { return condition ? if_true : if_false; }

// v limited to [-bound, bound]; NaN passes.
FD_FN float clip(float v, float bound) { return v > bound ? bound : v < -bound ? -bound : v; }
FD_FN double clip(double v, double bound) { return v > bound ? bound : v < -bound ? -bound : v; }

FD_FN float as_float(uint32_t v) { return bits_to_float(v); }
FD_FN uint32_t as_uint(float v) { return float_to_bits(v); }
FD_FN float int_to_float(int32_t v) { return float(v); }
FD_FN int32_t as_int(uint32_t v) { return int32_t(v); }
FD_FN float uint_to_float(uint32_t v) { return float(v); }

// Product of the low 32 bits of a and b.
FD_FN uint64_t multiply(uint64_t a, uint32_t b) { return uint64_t(uint32_t(a)) * b; }

}  // namespace FD_SPACE
}  // namespace fastdiff
