// The AVX-512 that csrc/cpu uses, by AVX2 and lane by lane, so that its sources run on a processor without it.
// Included before a source; it then takes itself for compiled with -mavx512f (and -mavx512bf16).
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

#define EMULATED static inline __attribute__((always_inline, unused))

// What is the same for both halves of a register.
struct Halves { __m256 low, high; };

EMULATED Halves halves(__m512 v) { Halves h; memcpy(&h, &v, sizeof h); return h; }
EMULATED __m512 joined(__m256 low, __m256 high) {
  const Halves h = {low, high};
  __m512 v;
  memcpy(&v, &h, sizeof v);
  return v;
}

template <class T, class Vector> struct Lanes {
  T lane[sizeof(Vector) / sizeof(T)];
  explicit Lanes(Vector v) { memcpy(lane, &v, sizeof v); }
  Lanes() = default;
  operator Vector() const { Vector v; memcpy(&v, lane, sizeof v); return v; }
};
typedef Lanes<float, __m512> Floats;
typedef Lanes<int32_t, __m512i> Words;
typedef Lanes<uint16_t, __m512i> Shorts;

template <class Half, class... V> EMULATED __m512 each_half(const Half& half, V... v) {
  return joined(half(halves(v).low...), half(halves(v).high...));
}
EMULATED __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  return each_half([](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
EMULATED __m512 sqrt(__m512 v) { return each_half([](__m256 x) { return _mm256_sqrt_ps(x); }, v); }
#define EMULATED_PAIR(name) \
  EMULATED __m512 name(__m512 a, __m512 b) { \
    return each_half([](__m256 x, __m256 y) { return _mm256_##name##_ps(x, y); }, a, b); \
  }
EMULATED_PAIR(min)
EMULATED_PAIR(max)
EMULATED_PAIR(unpacklo)
EMULATED_PAIR(unpackhi)
#undef EMULATED_PAIR

EMULATED __m512 set1(float value) { return joined(_mm256_set1_ps(value), _mm256_set1_ps(value)); }
EMULATED __m512i set1_32(int value) { return (__m512i)joined((__m256)_mm256_set1_epi32(value), (__m256)_mm256_set1_epi32(value)); }
EMULATED __m512i set1_64(long long value) {
  return (__m512i)joined((__m256)_mm256_set1_epi64x(value), (__m256)_mm256_set1_epi64x(value));
}
template <class... Lane> EMULATED __m512i setr_32(Lane... lanes) {
  const int32_t lane[16] = {int32_t(lanes)...};
  __m512i v;
  memcpy(&v, lane, sizeof v);
  return v;
}
template <class... Lane> EMULATED __m512i set_16(Lane... from_the_last) {
  const uint16_t reversed[32] = {uint16_t(from_the_last)...};
  Shorts v;
  for (int i = 0; i < 32; ++i) v.lane[i] = reversed[31 - i];
  return v;
}

EMULATED __m512i mul_32(__m512i a, __m512i b) {
  return (__m512i)each_half([](__m256 x, __m256 y) { return (__m256)_mm256_mul_epu32((__m256i)x, (__m256i)y); },
                            (__m512)a, (__m512)b);
}
EMULATED __mmask16 test_32(__m512i a, __m512i b) {
  const Words x(a), y(b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned((x.lane[i] & y.lane[i]) != 0) << i;
  return mask;
}
EMULATED __m512 load_masked(__mmask16 mask, const float* p) {
  Floats r{};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) r.lane[i] = p[i];
  return r;
}
EMULATED void store_masked(float* p, __mmask16 mask, __m512 v) {
  const Floats r(v);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) p[i] = r.lane[i];
}
EMULATED __m512i mask_add_32(__m512i source, __mmask16 mask, __m512i a, __m512i b) {
  Words result(source);
  const Words x(a), y(b);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) result.lane[i] = int32_t(uint32_t(x.lane[i]) + uint32_t(y.lane[i]));
  return result;
}

EMULATED __m512 permutex2var(__m512 a, __m512i lanes, __m512 b) {
  const Floats x(a), y(b);
  const Words from(lanes);
  Floats result;
  for (int i = 0; i < 16; ++i) result.lane[i] = (from.lane[i] & 16 ? y : x).lane[from.lane[i] & 15];
  return result;
}
EMULATED __m512i permutexvar_16(__m512i lanes, __m512i v) {
  const Shorts from(lanes), x(v);
  Shorts result;
  for (int i = 0; i < 32; ++i) result.lane[i] = x.lane[from.lane[i] & 31];
  return result;
}

EMULATED __m512 cvtph(__m256i halfs) {
  return joined(_mm256_cvtph_ps(_mm256_castsi256_si128(halfs)), _mm256_cvtph_ps(_mm256_extracti128_si256(halfs, 1)));
}
EMULATED __m256i cvtps_to_nearest(__m512 v) {
  const Halves x = halves(v);
  return _mm256_set_m128i(_mm256_cvtps_ph(x.high, 0), _mm256_cvtps_ph(x.low, 0));
}
EMULATED __m512i widened_bytes(__m128i v) {
  return (__m512i)joined((__m256)_mm256_cvtepu8_epi32(v), (__m256)_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)));
}

// v - floor(v); 0 of an infinity.
EMULATED __m512 reduce_from_floor(__m512 v) {
  Floats result(v);
  for (float& x : result.lane) x = std::isinf(x) ? 0 : x - floorf(x);
  return result;
}
// a 2^floor(b).
EMULATED __m512 scalef(__m512 a, __m512 b) {
  Floats result(a);
  const Floats by(b);
  for (int i = 0; i < 16; ++i) {
    const float power = by.lane[i] < -400 ? -400 : by.lane[i] > 400 ? 400 : floorf(by.lane[i]);
    result.lane[i] = power == power ? ldexpf(result.lane[i], int(power)) : power;
  }
  return result;
}

// The bfloat16 of b in the lower half of the register, of a in the upper one; subnormal numbers become 0.
EMULATED uint16_t bfloat16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  if (v != v) return uint16_t(bits >> 16 | 0x40);
  if ((bits & 0x7f800000) == 0) return uint16_t(bits >> 16 & 0x8000);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMULATED __m512bh cvtne2ps(__m512 a, __m512 b) {
  const Floats high(a), low(b);
  Shorts result;
  for (int i = 0; i < 16; ++i) {
    result.lane[i] = bfloat16(low.lane[i]);
    result.lane[i + 16] = bfloat16(high.lane[i]);
  }
  return (__m512bh)(__m512i)result;
}


// total + the products of each pair; subnormal inputs and results count as 0.
EMULATED __m512 dpbf16(__m512 total, __m512bh a, __m512bh b) {
  const auto plain = [](float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; };
  const auto widened = [&](uint16_t v) {
    const uint32_t bits = uint32_t(v) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return plain(result);
  };
  Floats result(total);
  const Shorts x((__m512i)a), y((__m512i)b);
  for (int i = 0; i < 16; ++i)
    for (int k = 2 * i + 1; k >= 2 * i; --k)
      result.lane[i] = plain(fmaf(widened(x.lane[k]), widened(y.lane[k]), plain(result.lane[i])));
  return result;
}

#undef EMULATED

}  // namespace emulated

#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_sqrt_ps emulated::sqrt
#define _mm512_min_ps emulated::min
#define _mm512_max_ps emulated::max
#define _mm512_unpacklo_ps emulated::unpacklo
#define _mm512_unpackhi_ps emulated::unpackhi
#define _mm512_set1_ps emulated::set1
#define _mm512_set1_epi32 emulated::set1_32
#define _mm512_set1_epi64 emulated::set1_64
#define _mm512_setr_epi32 emulated::setr_32
#define _mm512_set_epi16 emulated::set_16
#define _mm512_mul_epu32 emulated::mul_32
#define _mm512_test_epi32_mask emulated::test_32
#define _mm512_mask_add_epi32 emulated::mask_add_32
#define _mm512_maskz_loadu_ps emulated::load_masked
#define _mm512_mask_storeu_ps emulated::store_masked
#define _mm512_permutex2var_ps emulated::permutex2var
#define _mm512_permutexvar_epi16 emulated::permutexvar_16
#define _mm512_cvtph_ps emulated::cvtph
#define _mm512_cvtps_ph(v, rounding) emulated::cvtps_to_nearest(v)
#define _mm512_cvtepu8_epi32 emulated::widened_bytes
#define _mm512_reduce_ps(v, rounding) emulated::reduce_from_floor(v)
#define _mm512_scalef_ps emulated::scalef
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps
#define _mm512_dpbf16_ps emulated::dpbf16

#define __AVX512F__ 1
#ifdef EMULATED_BF16
#define __AVX512BF16__ 1
#endif
