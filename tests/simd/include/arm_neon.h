// The NEON that csrc/cpu uses, by AVX and FMA, so that its sources for aarch64 run on an x86-64 processor.
// Included before a source, which then takes itself for compiled for aarch64; the system's headers must not.
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

typedef float float32x4_t __attribute__((vector_size(16)));
typedef uint64_t uint64x2_t __attribute__((vector_size(16)));
typedef uint32_t uint32x2_t __attribute__((vector_size(8)));

namespace emulated {

#define EMULATED static inline __attribute__((always_inline, unused))

// c + a b
EMULATED float32x4_t vfmaq_f32(float32x4_t c, float32x4_t a, float32x4_t b) {
  return (float32x4_t)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
}
EMULATED float32x4_t vsqrtq_f32(float32x4_t v) { return (float32x4_t)_mm_sqrt_ps((__m128)v); }
EMULATED uint32x2_t vmovn_u64(uint64x2_t v) { return uint32x2_t{uint32_t(v[0]), uint32_t(v[1])}; }
EMULATED uint32x2_t vdup_n_u32(uint32_t value) { return uint32x2_t{value, value}; }
EMULATED uint64x2_t vmull_u32(uint32x2_t a, uint32x2_t b) {
  return uint64x2_t{uint64_t(a[0]) * b[0], uint64_t(a[1]) * b[1]};
}
EMULATED float32x4_t vuzp1q_f32(float32x4_t a, float32x4_t b) { return float32x4_t{a[0], a[2], b[0], b[2]}; }
EMULATED float32x4_t vuzp2q_f32(float32x4_t a, float32x4_t b) { return float32x4_t{a[1], a[3], b[1], b[3]}; }
EMULATED float32x4_t vzip1q_f32(float32x4_t a, float32x4_t b) { return float32x4_t{a[0], b[0], a[1], b[1]}; }
EMULATED float32x4_t vzip2q_f32(float32x4_t a, float32x4_t b) { return float32x4_t{a[2], b[2], a[3], b[3]}; }

#undef EMULATED

}  // namespace emulated

using namespace emulated;

#undef __x86_64__
#undef __AVX__
#undef __AVX2__
#undef __FMA__
#undef __F16C__
#define __aarch64__ 1
