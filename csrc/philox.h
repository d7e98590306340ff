// The counter RNG: Philox4x32-10 and Box-Muller, one text for the device, the host's scalars and its vectors.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; Box and Muller, 1958.
#pragma once
#include "arithmetic.h"

namespace fastdiff {
namespace FD_SPACE {

// ln(1 + f) = f - f^2 / 2 + f^3 (kLog0 + kLog1 f + ...) for 1 + f in [sqrt(1/2), sqrt(2)). The Triton kernels use the
// same coefficients.
constexpr float kLog0 = 0.33333331174f, kLog1 = -0.24999993993f, kLog2 = 0.20000714765f, kLog3 = -0.16668057665f,
                kLog4 = 0.14249322787f, kLog5 = -0.12420140846f, kLog6 = 0.1167699874f, kLog7 = -0.1151461031f,
                kLog8 = 0.070376836292f;
constexpr float kLn2 = 0.69314718f;                                 // 1.9e-9 above ln 2

// sin(2 pi x) = x (kSin0 + kSin1 x^2 + ...) and cos(2 pi x) = 1 + kCos1 x^2 + ... for |x| <= 1/8.
constexpr float kSin0 = 6.28318531f, kSin1 = -41.3417022f, kSin2 = 81.6052493f, kSin3 = -76.7058598f,
                kSin4 = 42.0586939f;
constexpr float kCos1 = -19.7392088f, kCos2 = 64.939394f, kCos3 = -85.4568172f, kCos4 = 60.2446414f,
                kCos5 = -26.4262568f;

// Ten rounds on the counter words c under the key (k0, k1). Words are uint32_t or, on the host, vectors of them.
template <class Word, class Key>
FD_FN void philox(Word (&c)[4], Key k0, Key k1) {
  FD_UNROLL
  for (int round = 0; round < 10; ++round) {
    Word high0, high1, low0, low1;
    multiply(c[0], 0xD2511F53u, high0, low0);
    multiply(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ (c[1] ^ k0);
    c[1] = low1;
    c[2] = high0 ^ (c[3] ^ k1);
    c[3] = low0;
    k0 = k0 + 0x9E3779B9u;
    k1 = k1 + 0xBB67AE85u;
  }
}

// sqrt(-2 ln u), u = float32(a) 2^-32 + 2^-33 in (0, 1], from u = 2^exponent (1 + f) exactly. The polynomial is in
// g = -2 f: the factors it puts on the coefficients are powers of two.
template <class Uint>
FD_FN auto radius(Uint a) {
  const auto u = madd(uint_to_float(a), 0x1p-32f, 0x1p-33f);
  const auto shifted = as_uint(u) - 0x3f3504f3u;
  const auto exponent = int_to_float(as_int(shifted) >> 23);
  const auto g = madd(as_float((shifted & 0x7fffffu) + 0x3f3504f3u), -2.0f, 2.0f);
  const auto square = g * g;
  auto even = madd(square, kLog7 / -512, kLog5 / -128);
  even = madd(square, even, kLog3 / -32);
  even = madd(square, even, kLog1 / -8);
  even = madd(square, even, 0.25f);
  auto odd = madd(square, kLog8 / 1024, kLog6 / 256);
  odd = madd(square, odd, kLog4 / 64);
  odd = madd(square, odd, kLog2 / 16);
  odd = madd(square, odd, kLog0 / 4);
  return sqrt(madd(exponent, -2 * kLn2, madd(square, madd(g, odd, even), g)));
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
  const Uint swap = quadrant << 1;                                   // its highest bit counts
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
  uint32_t c[4] = {block, key.sample, key.draw, key.stream};
  philox(c, uint32_t(key.seed), uint32_t(key.seed >> 32));
  box_muller(c[0], c[1], n[0], n[1]);
  box_muller(c[2], c[3], n[2], n[3]);
}

}  // namespace FD_SPACE
}  // namespace fastdiff
