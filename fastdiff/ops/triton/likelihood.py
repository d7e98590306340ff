"""The per-element formulas of csrc/likelihood.h and csrc/special.h in Triton, where they are explained."""

import triton
import triton.language as tl

from .philox import log
from .reverse_step import exp

UNIT = tl.constexpr(1.4426950408889634)  # `raised` takes exponents in these
LOGIT_SLOPE = tl.constexpr(1.5957691216057308)
LOGIT_CUBE = tl.constexpr(1.5957691216057308 * 0.044715)
RAREST = tl.constexpr(1e12 - 1)
FARTHEST = tl.constexpr(1e12)
LOG_ROOT_TWO_PI = tl.constexpr(0.9189385332046728)


@triton.jit
def raised(x):
    """e^(x / UNIT)."""
    return tl.exp2(x)


@triton.jit
def limited(x, bound):
    return tl.clamp(x, -bound, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log_one_plus(x):
    """ln(1 + x), x > -1; NaN of NaN."""
    total = x + 1.0
    return log(total) + (x - (total - 1.0)) / total


@triton.jit
def complement(x, fade):
    """1 - e^(-x / UNIT) for x >= 0, fade being raised(-x)."""
    p = tl.fma(x, -0.00112340421905 / UNIT**6, 0.00818961363116 / UNIT**5)
    p = tl.fma(x, p, -0.0416300728319 / UNIT**4)
    p = tl.fma(x, p, 0.166662418687 / UNIT**3)
    p = tl.fma(x, p, -0.499999818774 / UNIT**2)
    p = tl.fma(x, p, 0.999999998743 / UNIT)
    return tl.where(x < 0.5 * UNIT, x * p, 1.0 - fade)


@triton.jit
def exp_minus_one(x):
    """e^x - 1 and e^x - 1 - x."""
    p = tl.fma(x, 1 / 362880, 1 / 40320)
    p = tl.fma(x, p, 1 / 5040)
    p = tl.fma(x, p, 1 / 720)
    p = tl.fma(x, p, 1 / 120)
    p = tl.fma(x, p, 1 / 24)
    p = tl.fma(x, p, 1 / 6)
    p = tl.fma(x, p, 1 / 2)
    series = p * x * x
    far = exp(x) - 1.0
    near = tl.abs(x) < 0.5
    return tl.where(near, series + x, far), tl.where(near, series, far - x)


@triton.jit
def mills_ratio(y):
    """(1 - Phi(y)) / phi(y), y >= 0, within 3 ulp."""
    t = 1.0 / tl.fma(y, 0.4, 1.0)
    p = tl.fma(t, 0.0412914865, -0.137923971)
    p = tl.fma(t, p, 0.055433467)
    p = tl.fma(t, p, 0.317653626)
    p = tl.fma(t, p, -0.427980989)
    p = tl.fma(t, p, 0.0398502797)
    p = tl.fma(t, p, 0.0174982287)
    p = tl.fma(t, p, 0.211720869)
    p = tl.fma(t, p, 0.33576557)
    p = tl.fma(t, p, 0.400005639)
    p = tl.fma(t, p, 0.399999976)
    return p * t


@triton.jit
def tanh_mass(centre, half, first, last):
    c = limited(centre, FARTHEST)
    d = tl.minimum(half, FARTHEST, propagate_nan=tl.PropagateNan.ALL)
    squares = tl.fma(c * c, 3.0, d * d)
    middle = c * tl.fma(tl.fma(d * d, 3.0, c * c), -LOGIT_CUBE * UNIT, -LOGIT_SLOPE * UNIT)
    width = d * tl.fma(squares, -LOGIT_CUBE * UNIT, -LOGIT_SLOPE * UNIT)
    a = tl.where(last, 0.0, raised(width + middle))
    b = tl.where(first, 0.0, raised(width - middle))
    apart = tl.where(first | last, -1000.0, width + width)
    ab = raised(apart)
    N = complement(-apart, ab)
    R = tl.fma(ab, 2.0, a + b) / N

    upper, lower, between = c + d, c - d, ab / N
    A = a / (a + 1.0) * tl.fma(upper * upper, 3.0 * LOGIT_CUBE, LOGIT_SLOPE)
    B = b / (b + 1.0) * tl.fma(lower * lower, 3.0 * LOGIT_CUBE, LOGIT_SLOPE)
    by_shift = tl.fma(between * (12.0 * LOGIT_CUBE), c * d, A - B)
    by_scale = tl.fma(between * d * 2.0, tl.fma(squares, 3.0 * LOGIT_CUBE, LOGIT_SLOPE), A * upper - B * lower)
    is_rare = R > RAREST
    log_mass = -log_one_plus(tl.minimum(R, RAREST, propagate_nan=tl.PropagateNan.ALL))
    return log_mass, tl.where(is_rare, 0.0, by_shift), tl.where(is_rare, 0.0, by_scale)


@triton.jit
def narrow_bin(centre, half):
    D = half * half
    K = centre * centre * D
    quadratic = (K * K - 6.0 * K * D + 3.0 * D * D) * (1 / 120)
    cubic = (K * K * K - 15.0 * K * K * D + 45.0 * K * D * D - 15.0 * D * D * D) * (1 / 5040)
    excess = (K - D) * (1 / 6) + quadratic + cubic
    by_K = 1 / 6 + (2.0 * K - 6.0 * D) * (1 / 120) + (3.0 * K * K - 30.0 * K * D + 45.0 * D * D) * (1 / 5040)
    by_D = -1 / 6 + (6.0 * D - 6.0 * K) * (1 / 120) - (15.0 * K * K - 90.0 * K * D + 45.0 * D * D) * (1 / 5040)
    whole = excess + 1.0
    log_mass = tl.fma(centre * -0.5, centre, log(half + half) - LOG_ROOT_TWO_PI) + log_one_plus(excess)
    by_shift = tl.fma(centre * D, by_K / whole * 2.0, -centre)
    by_scale = 1.0 - centre * centre + (4.0 * K * by_K + 2.0 * D * by_D) / whole
    return log_mass, by_shift, by_scale


@triton.jit
def wide_bin(centre, half, outermost):
    upper, lower = centre + half, centre - half
    k = tl.where(outermost, 1000.0, centre * half * (-2.0 * UNIT))
    fade = raised(-k)
    exponent = tl.fma(upper * upper, -0.5 * UNIT, -LOG_ROOT_TWO_PI * UNIT)
    density = raised(exponent)
    near = mills_ratio(tl.abs(upper))
    far = mills_ratio(tl.abs(lower)) * fade
    around = upper > 0
    outside = density * (near + far)
    rest = tl.where(around, 1.0 - outside, near - far)
    lost = (1.0 - rest) - outside
    scale = tl.where(around, density, 1.0) / rest
    log_mass = log(rest) + tl.where(around, lost, exponent * (1 / UNIT))
    return log_mass, scale * complement(k, fade), scale * (upper - lower * fade)


@triton.jit
def erf_mass(given, half, first, last):
    outermost = first | last
    centre = tl.where(outermost, tl.where(last, -given, given), -tl.abs(given))
    log_mass, by_shift, by_scale = wide_bin(centre, half, outermost)
    is_wide = (half >= 0.25) | (centre * half <= -0.25) | outermost
    if tl.min(tl.reshape(is_wide.to(tl.int32), (is_wide.numel,), can_reorder=True), axis=0) == 0:
        narrow, narrow_shift, narrow_scale = narrow_bin(centre, half)
        log_mass = tl.where(is_wide, log_mass, narrow)
        by_shift = tl.where(is_wide, by_shift, narrow_shift)
        by_scale = tl.where(is_wide, by_scale, narrow_scale)
    mirrored = last | ((given > 0) & (first == 0))
    return log_mass, tl.where(mirrored, -by_shift, by_shift), by_scale


@triton.jit
def bin_mass(x0, centred, inverse_std, EXACT: tl.constexpr):
    """ln of the mass of x0's bin, and its derivatives as the bin moves up and as it widens."""
    centre = centred * inverse_std
    half = inverse_std * (1 / 255)
    if EXACT:
        return erf_mass(centre, half, x0 < -0.999, x0 > 0.999)
    else:
        return tanh_mass(centre, half, x0 < -0.999, x0 > 0.999)
