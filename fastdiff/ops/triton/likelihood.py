"""The per-element formulas of csrc/likelihood.h and csrc/special.h in Triton, where they are explained."""

import triton
import triton.language as tl

from .philox import log as log_of_number
from .reverse_step import exp

LOGIT_SLOPE = tl.constexpr(1.5957691216057308)
LOGIT_CUBE = tl.constexpr(1.5957691216057308 * 0.044715)
LOG_FLOOR = tl.constexpr(-27.631021115928547)
LOG_ROOT_TWO_PI = tl.constexpr(0.9189385332046728)
ONE_OVER_ROOT_TWO_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def log(x):
    """ln x within 2 ulp, x a positive normal number; NaN and infinity give NaN."""
    return log_of_number(x) + (x - x)


@triton.jit
def log_one_plus(x):
    total = x + 1.0
    return log(total) + (x - (total - 1.0)) / total


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
def logit(u):
    return tl.fma(u * u, LOGIT_CUBE, LOGIT_SLOPE) * u


@triton.jit
def floored(log_mass, by_shift, by_scale):
    below = log_mass < LOG_FLOOR
    return tl.where(below, LOG_FLOOR, log_mass), tl.where(below, 0.0, by_shift), tl.where(below, 0.0, by_scale)


@triton.jit
def tanh_tail(u):
    h = logit(u)
    fade = exp(-tl.abs(h))
    above = tl.where(h < 0, 1.0, fade) / (fade + 1.0)
    slope = above * tl.fma(u * u, 3.0 * LOGIT_CUBE, LOGIT_SLOPE)
    return floored(tl.where(h < 0, h, 0.0) - log_one_plus(fade), slope, slope * u)


@triton.jit
def tanh_bin(centre, half):
    upper, lower, width = centre + half, centre - half, half + half
    h = logit(upper)
    squares = tl.fma(upper, upper, tl.fma(upper, lower, lower * lower))
    w = width * tl.fma(squares, LOGIT_CUBE, LOGIT_SLOPE)
    less, _ = exp_minus_one(-w)
    within = -less
    fade = exp(-tl.abs(h))
    below = exp(logit(lower))

    rest = fade / (fade + 1.0) + below / (below + 1.0)
    whole = (h > 0) & (rest < 0.5)
    mass = tl.where(whole, 1.0 - rest, within / ((fade + 1.0) * (below + 1.0)))
    lost = tl.where(whole, (1.0 - mass) - rest, 0.0)
    log_mass = tl.where(h < 0, h, 0.0) + log(mass) + lost / mass

    odds = tl.where(h < 0, fade, 1.0 / fade)
    A = (below + 1.0) / (odds + 1.0)
    B = (below + exp(-w)) / (below + 1.0)
    s = below / (below + 1.0)
    E, _ = exp_minus_one(w)
    narrow = (tl.fma(s, -2.0, 1.0) - s * s * E) / tl.fma(s, E, 1.0)
    difference = tl.where(w < 1.0, narrow, (A - B) / within)
    change = B * width / within
    slope = tl.fma(upper * upper, 3.0 * LOGIT_CUBE, LOGIT_SLOPE)
    by_shift = tl.fma(difference, slope, change * (3.0 * LOGIT_CUBE) * (centre + centre))
    by_scale = tl.fma(difference * upper, slope, change * tl.fma(squares, 3.0 * LOGIT_CUBE, LOGIT_SLOPE))
    return floored(log_mass, by_shift, by_scale)


@triton.jit
def normal_density(u):
    return exp(u * u * -0.5) * ONE_OVER_ROOT_TWO_PI


@triton.jit
def erf_tail(u):
    ratio = mills_ratio(tl.abs(u))
    density = normal_density(u)
    above = density * ratio
    low = u < 0
    slope = tl.where(low, 1.0 / ratio, density / (1.0 - above))
    far = tl.fma(u * -0.5, u, log(ratio) - LOG_ROOT_TWO_PI)
    return tl.where(low, far, log_one_plus(tl.where(low, 0.0, -above))), slope, slope * u


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
def wide_bin(centre, half):
    upper, lower, k = centre + half, centre - half, half * centre * -2.0
    fade = exp(-k)
    density = normal_density(upper)
    near = mills_ratio(tl.abs(upper))
    far = mills_ratio(-lower) * fade
    around = upper > 0
    outside = tl.where(around, density * (near + far), 0.0)
    rest = tl.where(around, 1.0, near - far)
    tail = tl.fma(upper * -0.5, upper, log(rest) - LOG_ROOT_TWO_PI)
    log_mass = tl.where(around, log_one_plus(-outside), tail)
    scale = tl.where(around, density / (1.0 - outside), 1.0 / rest)
    less, _ = exp_minus_one(-k)
    return log_mass, -scale * less, scale * (upper - lower * fade)


@triton.jit
def erf_bin(centre, half):
    narrow, narrow_shift, narrow_scale = narrow_bin(centre, half)
    wide, wide_shift, wide_scale = wide_bin(centre, half)
    width = half + half
    is_narrow = (width < 0.5) & (-centre * width < 0.5)
    log_mass = tl.where(is_narrow, narrow, wide)
    return log_mass, tl.where(is_narrow, narrow_shift, wide_shift), tl.where(is_narrow, narrow_scale, wide_scale)


@triton.jit
def bin_mass(x0, centred, inverse_std, EXACT: tl.constexpr):
    """ln of the mass of x0's bin, and its derivatives as the bin moves up and as it widens."""
    centre = centred * inverse_std
    half = inverse_std * (1 / 255)
    first = x0 < -0.999
    last = x0 > 0.999
    mirrored = last | ((x0 >= -0.999) & (centre > 0))
    folded = tl.where(mirrored, -centre, centre)
    if EXACT:
        tail, tail_shift, tail_scale = erf_tail(folded + half)
        inner, inner_shift, inner_scale = erf_bin(folded, half)
    else:
        tail, tail_shift, tail_scale = tanh_tail(folded + half)
        inner, inner_shift, inner_scale = tanh_bin(folded, half)
    outermost = first | last
    by_shift = tl.where(outermost, tail_shift, inner_shift)
    by_shift = tl.where(mirrored, -by_shift, by_shift)
    return tl.where(outermost, tail, inner), by_shift, tl.where(outermost, tail_scale, inner_scale)
