// Float vectors of one SIMD level. The level is fixed by the -m flags of the object; FD_LEVEL names it.
//
// Arithmetic is GCC's vector extension (+ - * / and comparisons act per lane); what it lacks is below. Fused multiply-add
// is always asked for by madd, never left to the compiler (-ffp-contract=off), so that a masked tail, which runs the same
// functions on padded lanes, gives the same bits as the main loop.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && !defined(__AVX__)
#include <emmintrin.h>                                   // SSE2; the whole of it takes a second to read
#elif defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../dtype.h"

#define FD_SIMD static inline __attribute__((always_inline, unused))
#define FD_INLINE __attribute__((always_inline))   // for lambdas and members that pass vectors
#define FD_SHARED_CODE __attribute__((noinline))   // where a copy for each caller would be compiled and not felt

namespace fastdiff {
namespace FD_LEVEL {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kWidth)));
typedef int32_t vint __attribute__((vector_size(4 * kWidth)));
typedef uint32_t vuint __attribute__((vector_size(4 * kWidth)));

FD_SIMD vfloat set1(float v) { return v - vfloat{}; }

FD_SIMD vfloat load(const float* p) { vfloat v; memcpy(&v, p, sizeof v); return v; }
FD_SIMD void store(float* p, vfloat v) { memcpy(p, &v, sizeof v); }

FD_SIMD vfloat as_float(vuint v) { return (vfloat)v; }
FD_SIMD vuint as_uint(vfloat v) { return (vuint)v; }
FD_SIMD vint as_int(vuint v) { return (vint)v; }
FD_SIMD vfloat uint_to_float(vuint v) { return __builtin_convertvector(v, vfloat); }
FD_SIMD vfloat int_to_float(vint v) { return __builtin_convertvector(v, vfloat); }

// a * b + c, rounded once where the level has the instruction (the x86-64 baseline rounds twice).
FD_SIMD vfloat madd(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// The same with uniform factors and summands.
FD_SIMD vfloat madd(vfloat a, float b, vfloat c) { return madd(a, set1(b), c); }
FD_SIMD vfloat madd(vfloat a, float b, float c) { return madd(a, set1(b), set1(c)); }
FD_SIMD vfloat madd(vfloat a, vfloat b, float c) { return madd(a, b, set1(c)); }

// Scalar twin of madd, with the same rounding at each level.
FD_SIMD float madd(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FD_SIMD double madd(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

FD_SIMD vfloat sqrt(vfloat v) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
  return (vfloat)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (vfloat)vsqrtq_f32((float32x4_t)v);
#else
  vfloat r;
  for (int i = 0; i < kWidth; ++i) r[i] = __builtin_sqrtf(v[i]);
  return r;
#endif
}

// if_true where condition's lanes are all ones.
FD_SIMD vfloat select(vint condition, vfloat if_true, vfloat if_false) { return condition ? if_true : if_false; }

// if_set where the lane's highest bit is.
FD_SIMD vfloat select(vuint bits, vfloat if_set, vfloat if_clear) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (vfloat)_mm256_blendv_ps((__m256)if_clear, (__m256)if_set, (__m256)bits);
#else
  return (vint)bits < 0 ? if_set : if_clear;
#endif
}

// v limited to [-bound, bound]; NaN passes.
FD_SIMD vfloat clip(vfloat v, vfloat bound) {
  v = v > bound ? bound : v;
  return v < -bound ? -bound : v;
}

// v limited to [low, high]; NaN passes.
FD_SIMD vfloat limit(vfloat v, float low, float high) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)v));
#elif defined(__AVX2__)
  return (vfloat)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)v));
#elif defined(__x86_64__)
  return (vfloat)_mm_min_ps(_mm_set1_ps(high), _mm_max_ps(_mm_set1_ps(low), (__m128)v));
#else
  v = v < low ? set1(low) : v;
  return v > high ? set1(high) : v;
#endif
}

// kWidth / 2 words, each in the low half of a 64-bit lane; what is in the high halves is ignored.
typedef uint64_t vwide __attribute__((vector_size(4 * kWidth)));

// a * b as two words.
FD_SIMD void multiply(vwide a, uint32_t b, vwide& high, vwide& low) {
#if defined(__AVX512F__)
  low = (vwide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  low = (vwide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
  low = (vwide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
  low = (vwide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
  low = (a & 0xffffffffu) * b;
#endif
  high = low >> 32;
}

// The low halves of a in the even lanes, those of b in the odd ones.
FD_SIMD vuint pack(vwide a, vwide b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (vuint)_mm256_blend_epi32((__m256i)a, (__m256i)(b << 32), 0xaa);
#else
  return (vuint)((a & 0xffffffffu) | b << 32);
#endif
}

// a0 a2 ... b0 b2 ...; a1 a3 ... b1 b3 ...; the lower and the upper half of a0 b0 a1 b1 ...
#if defined(__AVX512F__)
FD_SIMD vfloat choose(vfloat a, vfloat b, __m512i lanes) {
  return (vfloat)_mm512_permutex2var_ps((__m512)a, lanes, (__m512)b);
}
FD_SIMD vfloat even_lanes(vfloat a, vfloat b) {
  return choose(a, b, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
}
FD_SIMD vfloat odd_lanes(vfloat a, vfloat b) {
  return choose(a, b, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
}
FD_SIMD vfloat lower_pairs(vfloat a, vfloat b) {
  return choose(a, b, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
}
FD_SIMD vfloat upper_pairs(vfloat a, vfloat b) {
  return choose(a, b, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
#elif defined(__AVX2__)
FD_SIMD vfloat order_halves(__m256 v) { return (vfloat)_mm256_permute4x64_pd((__m256d)v, 0xd8); }
FD_SIMD vfloat even_lanes(vfloat a, vfloat b) { return order_halves(_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88)); }
FD_SIMD vfloat odd_lanes(vfloat a, vfloat b) { return order_halves(_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd)); }
FD_SIMD vfloat lower_pairs(vfloat a, vfloat b) {
  const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  return (vfloat)_mm256_permute2f128_ps(low, high, 0x20);
}
FD_SIMD vfloat upper_pairs(vfloat a, vfloat b) {
  const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  return (vfloat)_mm256_permute2f128_ps(low, high, 0x31);
}
#elif defined(__x86_64__)
FD_SIMD vfloat even_lanes(vfloat a, vfloat b) { return (vfloat)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88); }
FD_SIMD vfloat odd_lanes(vfloat a, vfloat b) { return (vfloat)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd); }
FD_SIMD vfloat lower_pairs(vfloat a, vfloat b) { return (vfloat)_mm_unpacklo_ps((__m128)a, (__m128)b); }
FD_SIMD vfloat upper_pairs(vfloat a, vfloat b) { return (vfloat)_mm_unpackhi_ps((__m128)a, (__m128)b); }
#elif defined(__aarch64__)
FD_SIMD vfloat even_lanes(vfloat a, vfloat b) { return (vfloat)vuzp1q_f32((float32x4_t)a, (float32x4_t)b); }
FD_SIMD vfloat odd_lanes(vfloat a, vfloat b) { return (vfloat)vuzp2q_f32((float32x4_t)a, (float32x4_t)b); }
FD_SIMD vfloat lower_pairs(vfloat a, vfloat b) { return (vfloat)vzip1q_f32((float32x4_t)a, (float32x4_t)b); }
FD_SIMD vfloat upper_pairs(vfloat a, vfloat b) { return (vfloat)vzip2q_f32((float32x4_t)a, (float32x4_t)b); }
#else
FD_SIMD vfloat even_lanes(vfloat a, vfloat b) { return {a[0], a[2], b[0], b[2]}; }
FD_SIMD vfloat odd_lanes(vfloat a, vfloat b) { return {a[1], a[3], b[1], b[3]}; }
FD_SIMD vfloat lower_pairs(vfloat a, vfloat b) { return {a[0], b[0], a[1], b[1]}; }
FD_SIMD vfloat upper_pairs(vfloat a, vfloat b) { return {a[2], b[2], a[3], b[3]}; }
#endif

// a0 + a1, a2 + a3, ..., b0 + b1, ...
FD_SIMD vfloat add_pairs(vfloat a, vfloat b) { return even_lanes(a, b) + odd_lanes(a, b); }

// Lane sum in a fixed order: halves are folded together.
FD_SIMD float sum(vfloat v) {
  float lane[kWidth];
  store(lane, v);
#if defined(__AVX512F__)
  typedef float eight __attribute__((vector_size(32)));
  eight half[2];
  memcpy(half, lane, sizeof half);
  half[0] += half[1];
  memcpy(lane, half, sizeof half[0]);
#endif
#if defined(__AVX2__)
  typedef float four __attribute__((vector_size(16)));
  four quarter[2];
  memcpy(quarter, lane, sizeof quarter);
  quarter[0] += quarter[1];
  memcpy(lane, quarter, sizeof quarter[0]);
#endif
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

// exp(v) within 1 ulp for v in [-87, 88]; saturates to a tiny normal number and to inf outside; NaN passes.
FD_SIMD vfloat exp(vfloat v) {
  const vfloat limited = v < -87.0f ? set1(-87.0f) : v;
  const vfloat magic = set1(12582912.0f);                              // 1.5 * 2^23: adding it rounds to an integer
  const vfloat shifted = madd(limited, set1(1.44269504088896341f), magic);
  const vfloat n = shifted - magic;
  vfloat r = madd(n, set1(-0.693145751953125f), limited);              // Cody-Waite: ln 2 = high + low
  r = madd(n, set1(-1.42860682030941723212e-6f), r);
  vfloat p = set1(1.0f / 5040);
  p = madd(p, r, set1(1.0f / 720));
  p = madd(p, r, set1(1.0f / 120));
  p = madd(p, r, set1(1.0f / 24));
  p = madd(p, r, set1(1.0f / 6));
  p = madd(p, r, set1(0.5f));
  p = madd(p * r, r, r) + 1.0f;
  // 2^n in two factors, so that n = 128 gives inf only where the product overflows.
  const vint i = (vint)as_uint(shifted) - 0x4b400000;
  const vint low = i >> 1, high = i - low;
  const vfloat y = p * (vfloat)((low + 127) << 23) * (vfloat)((high + 127) << 23);
  const vfloat big = v > 89.0f ? set1(__builtin_inff()) : y;
  return v == v ? big : v;
}

// v rounded to nearest even at bit 16, in the upper half of each lane; the lower half is left over. NaN stays NaN.
FD_SIMD vuint round_to_bfloat16(vfloat v) {
  const vuint u = as_uint(v);
  return (u + 0x7fffu + (u >> 16 & 1u)) | (vuint)(v != v);
}

// The same of a v that is no NaN with digits in the lower half.
FD_SIMD vuint round_plain(vfloat v) {
  const vuint u = as_uint(v);
#if defined(__AVX512F__)
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)u, _mm512_set1_epi32(0x10000));
  const vuint nearest = u + 0x7fffu;
  return (vuint)_mm512_mask_add_epi32((__m512i)nearest, odd, (__m512i)nearest, _mm512_set1_epi32(1));
#else
  return u + 0x7fffu + (u >> 16 & 1u);
#endif
}

// The bfloat16 of a in the lower halves of the lanes, of b in the upper ones, as round_plain rounds. One instruction does
// both where the level has it; what is below 2^-126 it rounds to 0.
FD_SIMD vuint round_pair(vfloat a, vfloat b) {
#if defined(__AVX512BF16__)
  const __m512i to_lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (vuint)_mm512_permutexvar_epi16(to_lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
#else
  return round_plain(a) >> 16 | (round_plain(b) & 0xffff0000u);
#endif
}

// Dtype-converting access to kWidth consecutive elements.
FD_SIMD vfloat load(const bfloat16_t* p) {
  typedef uint16_t vhalf __attribute__((vector_size(2 * kWidth)));
  vhalf h;
  memcpy(&h, p, sizeof h);
  return as_float(__builtin_convertvector(h, vuint) << 16);
}

FD_SIMD void store(bfloat16_t* p, vfloat v) {
  typedef uint16_t vhalf __attribute__((vector_size(2 * kWidth)));
  const vhalf h = __builtin_convertvector(round_to_bfloat16(v) >> 16, vhalf);
  memcpy(p, &h, sizeof h);
}

#if defined(__AVX512F__)
FD_SIMD vfloat load(const half_t* p) { return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
FD_SIMD void store(half_t* p, vfloat v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
FD_SIMD vfloat load(const half_t* p) { return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
FD_SIMD void store(half_t* p, vfloat v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Long, an element at a time, and hence not for every place that calls them.
__attribute__((noinline, unused)) static vfloat load(const half_t* p) {
  vfloat v = {};
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
}
__attribute__((noinline, unused)) static void store(half_t* p, vfloat v) {
  for (int i = 0; i < kWidth; ++i) p[i] = to_half(v[i]);
}
#endif

FD_SIMD vfloat load(const uint8_t* p) {
#if defined(__AVX512F__)
  return int_to_float((vint)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return int_to_float((vint)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  typedef uint8_t vbyte __attribute__((vector_size(kWidth)));
  vbyte b;
  memcpy(&b, p, sizeof b);
  return int_to_float(__builtin_convertvector(b, vint));
#endif
}

// The first n < kWidth elements, other lanes 0; the same values as a full load.
template <class T>
FD_SIMD vfloat load_first(const T* p, int n) {
  T padded[kWidth] = {};
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
FD_SIMD void store_first(T* p, vfloat v, int n) {
  T padded[kWidth];
  store(padded, v);
  memcpy(p, padded, n * sizeof(T));
}

#if defined(__AVX512F__)
// A call to memcpy, made or not, would have every register stored and loaded around it.
FD_SIMD vfloat load_first(const float* p, int n) { return (vfloat)_mm512_maskz_loadu_ps((1u << n) - 1, p); }
FD_SIMD void store_first(float* p, vfloat v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v); }
#endif

}  // namespace FD_LEVEL
}  // namespace fastdiff
