// The counter RNG of DESIGN 4: Philox4x32-10 and Box-Muller, one text for the device, the host's scalars and its vectors.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; Box and Muller, 1958.
#pragma once
#include "arithmetic.h"

namespace fastdiff {
namespace FD_SPACE {

// ln(1 + f) = f - f^2 / 2 + f^3 (kLog[0] + kLog[1] f + ...) for 1 + f in [sqrt(1/2), sqrt(2)); shared with the Triton twin.
constexpr float kLog0 = 0.33333331174f, kLog1 = -0.24999993993f, kLog2 = 0.20000714765f, kLog3 = -0.16668057665f,
                kLog4 = 0.14249322787f, kLog5 = -0.12420140846f, kLog6 = 0.1167699874f, kLog7 = -0.1151461031f,
                kLog8 = 0.070376836292f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// sin(2 pi x) = x (kSin0 + kSin1 x^2 + ...) and cos(2 pi x) = 1 + kCos1 x^2 + ... for |x| <= 1/8.
constexpr float kSin0 = 6.28318531f, kSin1 = -41.3417022f, kSin2 = 81.6052493f, kSin3 = -76.7058598f,
                kSin4 = 42.0586939f;
constexpr float kCos1 = -19.7392088f, kCos2 = 64.939394f, kCos3 = -85.4568172f, kCos4 = 60.2446414f,
                kCos5 = -26.4262568f;

// Ten rounds on the counter words c under the key (k0, k1). Word is uint64_t or a vector of it; only its low half counts,
// and what carries leave in the high half is ignored.
template <class Word>
FD_FN void philox(Word (&c)[4], Word k0, Word k1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Word p0 = multiply(c[0], 0xD2511F53u), p1 = multiply(c[2], 0xCD9E8D57u);
    c[0] = (p1 >> 32) ^ (c[1] ^ k0);
    c[2] = (p0 >> 32) ^ (c[3] ^ k1);
    c[1] = p1;
    c[3] = p0;
    k0 = k0 + 0x9E3779B9u;
    k1 = k1 + 0xBB67AE85u;
  }
}

// sqrt(-2 ln u), u = float32(a) 2^-32 + 2^-33 in (0, 1]. Every constant of -2 ln carries the factor -2.
template <class Uint>
FD_FN auto radius(Uint a) {
  const auto u = madd(uint_to_float(a), 0x1p-32f, 0x1p-33f);
  // u = 2^exponent (1 + f) exactly.
  const auto shifted = as_uint(u) - 0x3f3504f3u;
  const auto exponent = int_to_float(as_int(shifted) >> 23);
  const auto f = as_float((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const auto square = f * f;
  auto p = madd(f, -2 * kLog8, -2 * kLog7);
  p = madd(f, p, -2 * kLog6);
  p = madd(f, p, -2 * kLog5);
  p = madd(f, p, -2 * kLog4);
  p = madd(f, p, -2 * kLog3);
  p = madd(f, p, -2 * kLog2);
  p = madd(f, p, -2 * kLog1);
  p = madd(f, p, -2 * kLog0);
  const auto tail = madd(square * f, p, exponent * (-2 * kLn2Low));
  return sqrt(madd(exponent, -2 * kLn2High, madd(f, -2.0f, square + tail)));
}

// cos(2 pi v) and sin(2 pi v), v = (b >> 8) 2^-24, the quadrant taken off exactly in integers.
template <class Uint, class Value>
FD_FN void unit_circle(Uint b, Value& cosine, Value& sine) {
  const auto x = int_to_float(as_int(b << 2) >> 10) * 0x1p-24f;      // v less its quadrant, in [-1/8, 1/8) turns
  const Uint quadrant = b + (1u << 29);                              // in the two highest bits
  const auto square = x * x;
  auto s = madd(square, kSin4, kSin3);
  s = madd(square, s, kSin2);
  s = madd(square, s, kSin1);
  s = madd(square, s, kSin0) * x;
  auto c = madd(square, kCos5, kCos4);
  c = madd(square, c, kCos3);
  c = madd(square, c, kCos2);
  c = madd(square, c, kCos1);
  c = madd(square, c, 1.0f);
  const auto swap = as_int(quadrant << 1) < 0;
  cosine = as_float(as_uint(select(swap, s, c)) ^ ((quadrant + (1u << 30)) & 0x80000000u));
  sine = as_float(as_uint(select(swap, c, s)) ^ (quadrant & 0x80000000u));
}

// Two standard normals from two words: within 4 ulp of their float64 definition.
template <class Uint, class Value>
FD_FN void box_muller(Uint a, Uint b, Value& even, Value& odd) {
  const auto r = radius(a);
  unit_circle(b, even, odd);
  even = r * even;
  odd = r * odd;
}

// What makes the noise of one sample: all of the counter but its block, and the key.
struct NoiseKey {
  uint32_t sample, draw, stream;
  uint64_t seed;
};

// The normals 4 * block ... 4 * block + 3 of a sample.
FD_FN void normals(const NoiseKey& key, uint32_t block, float (&n)[4]) {
  uint64_t c[4] = {block, key.sample, key.draw, key.stream};
  philox(c, key.seed, key.seed >> 32);
  box_muller(uint32_t(c[0]), uint32_t(c[1]), n[0], n[1]);
  box_muller(uint32_t(c[2]), uint32_t(c[3]), n[2], n[3]);
}

}  // namespace FD_SPACE
}  // namespace fastdiff
