"""The terms of the variational bound in bits per dimension and their gradient in the network's output, in Triton."""

import math

import triton
import triton.language as tl

from .likelihood import bin_mass, exp_minus_one, limited
from .loss import factor, run_gradient, run_sums, start, total
from .reverse_step import exp
from .tiles import channels_last, locate, offsets, read, write

# Columns of the table: enum VlbColumn of csrc/params.h.
P_X, P_M, R_0, R_X, RAW, L_0, L_1, L_Q, COLUMNS_OF_TABLE = (tl.constexpr(column) for column in range(9))
BITS_PER_NAT = tl.constexpr(1 / math.log(2))


@triton.jit
def column(table, step, known, which: tl.constexpr):
    return tl.load(table + step * COLUMNS_OF_TABLE + which, mask=known, other=float("nan"))


@triton.jit
def terms(model_output, x_start, x_t, t, table, flip, bound, sample, c, s, i, inside, C, N, W, T,
          LEARNED: tl.constexpr, EXACT: tl.constexpr, MODEL_LAST: tl.constexpr, X_START_LAST: tl.constexpr,
          X_T_LAST: tl.constexpr):
    """Nats of the elements, and their derivatives in the mean and the variance channels."""
    base = sample * N
    step = tl.load(t + sample)
    known = (step >= 0) & (step < T)
    p_x = column(table, step, known, P_X)
    p_m = column(table, step, known, P_M)
    r_0 = column(table, step, known, R_0)
    r_x = column(table, step, known, R_X)
    raw = column(table, step, known, RAW) != 0
    l_0 = column(table, step, known, L_0)
    l_1 = column(table, step, known, L_1)
    l_q = column(table, step, known, L_Q)

    channels = 2 * C if LEARNED else C
    output = model_output + base * (2 if LEARNED else 1)
    m = read(output, offsets(c, s, i, channels, MODEL_LAST), inside)
    log_variance = tl.zeros_like(m) + l_0
    if LEARNED:
        v = read(output, offsets(c + C, s, i + N, channels, MODEL_LAST), tl.where(l_1 != 0, inside, False))
        log_variance = tl.fma(v, l_1, log_variance)
    else:
        log_variance = tl.where(l_1 != 0, float("nan"), log_variance)
    x0 = start(x_start, flip, sample, base, c, s, i, C, W, inside, X_START_LAST)
    x = read(x_t + base, offsets(c, s, i, C, X_T_LAST), inside)

    estimate = tl.fma(m, p_m, x * p_x)
    clipped = limited(estimate, bound)
    moved = tl.where(raw, 1.0, tl.where(clipped == estimate, r_0 * p_m, 0.0))
    if step == 0:
        mean = tl.where(raw, m, tl.fma(clipped, r_0, x * r_x))
        inverse_std = exp(log_variance * -0.5)
        log_mass, by_shift, by_scale = bin_mass(x0, x0 - mean, inverse_std, EXACT)
        value = -log_mass
        by_mean = by_shift * inverse_std
        by_log_variance = by_scale * 0.5
    else:
        difference = tl.where(raw, tl.fma(x0, r_0, x * r_x) - m, (x0 - clipped) * r_0)
        grown, beyond = exp_minus_one(l_q - log_variance)
        precise = difference * exp(-log_variance)
        square = difference * precise
        value = (beyond + square) * 0.5
        by_mean = -precise
        by_log_variance = (grown + square) * -0.5
    return value, by_mean * moved, tl.where(l_1 != 0, by_log_variance * l_1, 0.0)


@triton.jit(do_not_specialize=["T"])
def vlb_terms_kernel(model_output,  # [B, C or 2C, S]
                     x_start,       # [B, C, S], any dtype
                     x_t,           # [B, C, S]
                     t,             # [B] int64
                     table,         # [T, 8]
                     flip,          # [B] bool or None
                     partial,       # [B, tiles]
                     bound, C, S, N, W, T, tiles, LEARNED: tl.constexpr, EXACT: tl.constexpr, MODEL_LAST: tl.constexpr,
                     X_START_LAST: tl.constexpr, X_T_LAST: tl.constexpr, ORDER: tl.constexpr, FULL: tl.constexpr,
                     ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, _ = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    value, _, _ = terms(model_output, x_start, x_t, t, table, flip, bound, sample, c, s, i, inside, C, N, W, T, LEARNED,
                        EXACT, MODEL_LAST, X_START_LAST, X_T_LAST)
    tl.store(partial + tl.program_id(0), total(value, inside))


@triton.jit(do_not_specialize=["T"])
def vlb_terms_backward_kernel(grad_terms,  # [B]
                              model_output, x_start, x_t, t, table, flip, weight, sample_weight,
                              grad,        # like model_output
                              bound, C, S, N, W, T, tiles, LEARNED: tl.constexpr, EXACT: tl.constexpr,
                              DETACHED: tl.constexpr, MODEL_LAST: tl.constexpr, X_START_LAST: tl.constexpr,
                              X_T_LAST: tl.constexpr, ORDER: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr,
                              COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, _ = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    _, by_m, by_v = terms(model_output, x_start, x_t, t, table, flip, bound, sample, c, s, i, inside, C, N, W, T,
                          LEARNED, EXACT, MODEL_LAST, X_START_LAST, X_T_LAST)
    scale = BITS_PER_NAT * tl.load(grad_terms + sample) * factor(t, weight, sample_weight, sample, T)
    scale /= tl.cast(N, tl.float32)
    channels = 2 * C if LEARNED else C
    base = sample * N * (2 if LEARNED else 1)
    by_m = tl.zeros_like(by_m) if DETACHED else by_m * scale
    write(grad + base, offsets(c, s, i, channels, MODEL_LAST), by_m, inside)
    if LEARNED:
        write(grad + base, offsets(c + C, s, i + N, channels, MODEL_LAST), by_v * scale, inside)


def vlb_terms(model_output, x_start, x_t, t, table, flip, weight, sample_weight, bound, exact, detach_mean, terms):
    """Fills terms [B]; a t outside [0, T) makes its sample NaN, as do variance channels that a row reads in vain."""
    images = dict(MODEL_LAST=model_output, X_START_LAST=x_start, X_T_LAST=x_t)
    run_sums(
        vlb_terms_kernel, images, False, BITS_PER_NAT.value, terms, t, weight, sample_weight, len(table), x_start,
        model_output=model_output, x_t=x_t, table=table, flip=flip, bound=bound, EXACT=exact,
    )  # fmt: skip


def vlb_terms_backward(grad_terms, model_output, x_start, x_t, t, table, flip, weight, sample_weight, bound, exact,
                       detach_mean, grad):  # fmt: skip
    """Fills grad, like model_output."""
    images = dict(MODEL_LAST=model_output, X_START_LAST=x_start, X_T_LAST=x_t)
    run_gradient(
        vlb_terms_backward_kernel, images, False, x_start, 2 if exact and channels_last(model_output) else 1,
        grad_terms=grad_terms, model_output=model_output, x_t=x_t, t=t, table=table, flip=flip, weight=weight,
        sample_weight=sample_weight, grad=grad, T=len(table), bound=bound, EXACT=exact, DETACHED=detach_mean,
    )  # fmt: skip
