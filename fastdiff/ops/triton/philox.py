"""Philox4x32-10 and Box-Muller in Triton: the words of csrc/philox.h bit for bit, normals by the same coefficients.

Integers and float32 arithmetic only: no libdevice, no `tl.log`, no `tl.cos`, whose argument reduction uses local
memory.
"""

import triton
import triton.language as tl

PHILOX_M0 = tl.constexpr(0xD2511F53)
PHILOX_M1 = tl.constexpr(0xCD9E8D57)
PHILOX_W0 = tl.constexpr(0x9E3779B9)
PHILOX_W1 = tl.constexpr(0xBB67AE85)

# ln(1 + f) = f - f^2 / 2 + f^3 * (LOG_0 + LOG_1 f + ...)
LOG_0 = tl.constexpr(0.33333331174)
LOG_1 = tl.constexpr(-0.24999993993)
LOG_2 = tl.constexpr(0.20000714765)
LOG_3 = tl.constexpr(-0.16668057665)
LOG_4 = tl.constexpr(0.14249322787)
LOG_5 = tl.constexpr(-0.12420140846)
LOG_6 = tl.constexpr(0.1167699874)
LOG_7 = tl.constexpr(-0.1151461031)
LOG_8 = tl.constexpr(0.070376836292)
LN_2 = tl.constexpr(0.69314718)
# sin(2 pi x) = x (SIN_0 + SIN_1 x^2 + ...) and cos(2 pi x) = COS_0 + COS_1 x^2 + ... for |x| <= 1/8
SIN_0 = tl.constexpr(6.28318531)
SIN_1 = tl.constexpr(-41.3417022)
SIN_2 = tl.constexpr(81.6052493)
SIN_3 = tl.constexpr(-76.7058598)
SIN_4 = tl.constexpr(42.0586939)
COS_0 = tl.constexpr(1)
COS_1 = tl.constexpr(-19.7392088)
COS_2 = tl.constexpr(64.939394)
COS_3 = tl.constexpr(-85.4568172)
COS_4 = tl.constexpr(60.2446414)
COS_5 = tl.constexpr(-26.4262568)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 counters and keys: four uint32 words.

    Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
    """
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * PHILOX_M0
        p1 = c2.to(tl.uint64) * PHILOX_M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, PHILOX_W0, sanitize_overflow=False)
        k1 = tl.add(k1, PHILOX_W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def log(x):
    """ln x within 2 ulp, x a positive normal number."""
    # x = 2^exponent * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), exactly.
    shifted = x.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, LOG_8, LOG_7)
    p = tl.fma(f, p, LOG_6)
    p = tl.fma(f, p, LOG_5)
    p = tl.fma(f, p, LOG_4)
    p = tl.fma(f, p, LOG_3)
    p = tl.fma(f, p, LOG_2)
    p = tl.fma(f, p, LOG_1)
    p = tl.fma(f, p, LOG_0)
    p = tl.fma(f, p, -0.5)
    return tl.fma(exponent, LN_2, tl.fma(f * f, p, f))


@triton.jit
def radius(word):
    """sqrt(-2 ln u) for u = float32(word) * 2^-32 + 2^-33 in (0, 1], from u = 2^exponent (1 + f) exactly.

    The polynomial is in g = -2 f: the factors it puts on the coefficients are powers of two.
    """
    u = tl.fma(word.to(tl.float32), 2.0**-32, 2.0**-33)
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    g = tl.fma(((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True), -2.0, 2.0)
    square = g * g
    even = tl.fma(square, LOG_7 / -512, LOG_5 / -128)
    even = tl.fma(square, even, LOG_3 / -32)
    even = tl.fma(square, even, LOG_1 / -8)
    even = tl.fma(square, even, 0.25)
    odd = tl.fma(square, LOG_8 / 1024, LOG_6 / 256)
    odd = tl.fma(square, odd, LOG_4 / 64)
    odd = tl.fma(square, odd, LOG_2 / 16)
    odd = tl.fma(square, odd, LOG_0 / 4)
    return tl.sqrt_rn(tl.fma(exponent, -2 * LN_2, tl.fma(square, tl.fma(g, odd, even), g)))


@triton.jit
def unit_circle(word):
    """cos(2 pi v), sin(2 pi v) for v = (word >> 8) * 2^-24, the quadrant taken off exactly in integers."""
    turn = ((word << 2).to(tl.int32, bitcast=True) >> 10).to(tl.float32) * 2.0**-24  # in [-1/8, 1/8)
    quadrant = tl.add(word, 1 << 29, sanitize_overflow=False)                         # in the two highest bits
    square = turn * turn
    sine = tl.fma(square, SIN_4, SIN_3)
    sine = tl.fma(square, sine, SIN_2)
    sine = tl.fma(square, sine, SIN_1)
    sine = tl.fma(square, sine, SIN_0)
    sine *= turn
    cosine = tl.fma(square, COS_5, COS_4)
    cosine = tl.fma(square, cosine, COS_3)
    cosine = tl.fma(square, cosine, COS_2)
    cosine = tl.fma(square, cosine, COS_1)
    cosine = tl.fma(square, cosine, COS_0)
    swap = (quadrant & (1 << 30)) != 0
    turned = tl.add(quadrant, 1 << 30, sanitize_overflow=False)
    return negated(tl.where(swap, sine, cosine), turned), negated(tl.where(swap, cosine, sine), quadrant)


@triton.jit
def negated(value, bits):
    """-value where the highest bit is set."""
    return (value.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def box_muller(a, b):
    """Two standard normals, float32, from two words."""
    r = radius(a)
    cosine, sine = unit_circle(b)
    return r * cosine, r * sine


@triton.jit
def words(rng, sample_ids, sample, stream, blocks):
    """The four words of each of a sample's Philox blocks."""
    seed = tl.load(rng)
    counter = blocks.to(tl.uint32)
    zero = tl.zeros_like(counter)
    return philox4x32(counter, zero + tl.load(sample_ids + sample).to(tl.uint32),
                      zero + tl.load(rng + 1).to(tl.uint32), zero + tl.cast(stream, tl.uint32),
                      seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def normals(rng, sample_ids, sample, stream, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Standard normals [ROWS, COLUMNS] of the Philox blocks [ROWS, COLUMNS / 4], each block's four side by side."""
    w0, w1, w2, w3 = words(rng, sample_ids, sample, stream, blocks)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (ROWS, COLUMNS))
