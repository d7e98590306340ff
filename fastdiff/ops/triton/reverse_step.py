"""One row of a sampler plan, every term of it (DESIGN 5), in Triton.

A coefficient of 0 masks its term's load, so that nothing is read; what a row needs and the call lacks makes the sample
NaN, as does a row outside the table: no value of a device tensor is ever known on the host.
"""

import triton
import triton.language as tl

from .philox import normals
from .tiles import SCATTERED, can_scatter, channels_last, device_of, locate, offsets, plan_tiles, read, write

# Columns of the row table and streams of the RNG: enums RowColumn and Stream of csrc/params.h.
(W, P_X, P_M, BOUND, G_0, L_0, L_1, C_X, C_0, C_M, C_1, C_2, C_3, G_X, G_V, STD,
 Q_X, Q_0, Q_M, WRITE, K_0, K_N, C_IN, RESERVED, ROW_COLUMNS) = (tl.constexpr(column) for column in range(25))
STEP_STREAM = tl.constexpr(1)
KNOWN_STREAM = tl.constexpr(2)


@triton.jit
def exp(x):
    """e^x within 2 ulp; `tl.exp` rounds x * log2(e) to float32 first, which costs |x| / 2 ulp."""
    x = tl.clamp(x, -200.0, 200.0, propagate_nan=tl.PropagateNan.ALL)
    n = tl.floor(tl.fma(x, 1.4426950408889634, 0.5))
    r = tl.fma(n, -1.42860682030941723212e-6, tl.fma(n, -0.693145751953125, x))
    half = tl.floor(n * 0.5)
    return tl.exp2(r * 1.4426950408889634) * tl.exp2(half) * tl.exp2(n - half)


@triton.jit
def add_term(total, coefficient, value):
    """total + coefficient * value; a coefficient of 0 ignores the value, NaN included."""
    return tl.where(coefficient != 0, tl.fma(coefficient, value, total), total)


@triton.jit
def two_terms(first, a, second, b):
    """first * a + second * b, likewise."""
    if (first != 0) & (second != 0):
        total = tl.fma(second, b, first * a)
    else:
        total = add_term(add_term(tl.zeros_like(a), first, a), second, b)
    return total


@triton.jit
def poisoned(value, missing):
    """NaN where something is missing."""
    return tl.where(missing, float("nan"), value)


@triton.jit
def wanted_state(pointer, base, offset, inside, wanted, missing):
    """Elements where wanted, else 0, and whether anything wanted so far is missing."""
    if pointer is None:
        return tl.zeros(inside.shape, tl.float32), missing | wanted
    else:
        return read(pointer + base, offset, tl.where(wanted, inside, False)), missing


@triton.jit
def drawn(rng, sample_ids, sample, stream, blocks, shape: tl.constexpr, ORDER: tl.constexpr, ROWS: tl.constexpr,
          COLUMNS: tl.constexpr):
    """Normals of the shape of the program's elements."""
    noise = normals(rng, sample_ids, sample, stream, blocks, ROWS, COLUMNS)
    return tl.reshape(tl.trans(noise), shape) if ORDER == SCATTERED else noise


@triton.jit
def network_output(model_output, w, sample, B, N, offset, inside, wanted, missing, GUIDED: tl.constexpr,
                   LEARNED: tl.constexpr):
    """Mean channels, halves combined by the guidance weight w."""
    base = sample * N * (2 if LEARNED else 1)
    m, missing = wanted_state(model_output, base, offset, inside, wanted, missing)
    if GUIDED:
        base += B.to(tl.int64) * N * (2 if LEARNED else 1)
        conditional, missing = wanted_state(model_output, base, offset, inside, wanted & (w != 0), missing)
        m = add_term(m, w, conditional - m)
    return m, missing


@triton.jit
def raw_variance(model_output, sample, B, N, offset, inside, wanted, missing, GUIDED: tl.constexpr):
    """Of the conditional half."""
    base = (sample + B.to(tl.int64) if GUIDED else sample) * N * 2
    return wanted_state(model_output, base, offset, inside, wanted, missing)


@triton.jit(do_not_specialize=["B", "R"])
def reverse_step_kernel(x, out, noise, extra, known, known_noise,        # [B, C, S]; None where absent
                        mask,                                            # [1 or B, 1 or C, S] or None
                        history,                                         # [3, B, C, S] or None
                        model_output,                                    # [B or 2B, C or 2C, S] or None
                        model_input,                                     # [COPIES * B, C, S] or None
                        gain, bound, shrink,                             # [B] or None
                        rows,                                            # [R, ROW_COLUMNS]
                        row,                                             # [1] or [B] int64
                        rng, sample_ids,                                 # [2], [B] int64, or None
                        B, R, C, S, N, tiles,
                        ROW_STRIDE: tl.constexpr, GUIDED: tl.constexpr, LEARNED: tl.constexpr, COPIES: tl.constexpr,
                        MASK_PER_SAMPLE: tl.constexpr, MASK_PER_CHANNEL: tl.constexpr,
                        STATE_LAST: tl.constexpr, MODEL_LAST: tl.constexpr, INPUT_LAST: tl.constexpr,
                        ORDER: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                        INDEX: tl.constexpr):
    sample, c, s, i, inside, blocks = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    base = sample * N
    offset = offsets(c, s, i, C, STATE_LAST)
    if ORDER == SCATTERED:
        channels = 2 * ROWS if LEARNED else ROWS
        variance_offset = offsets(c + ROWS, s, i + N, channels, MODEL_LAST)
    else:
        channels = 2 * C if LEARNED else C
        variance_offset = offsets(c + C, s, i + N, channels, MODEL_LAST)

    r = tl.load(row + sample * ROW_STRIDE)
    missing = (r < 0) | (r >= R)
    coefficients = rows + tl.where(missing, 0, r) * ROW_COLUMNS
    p_x = tl.load(coefficients + P_X)
    p_m = tl.load(coefficients + P_M)
    g_0 = tl.load(coefficients + G_0)
    l_0 = tl.load(coefficients + L_0)
    l_1 = tl.load(coefficients + L_1)
    c_x = tl.load(coefficients + C_X)
    c_0 = tl.load(coefficients + C_0)
    c_m = tl.load(coefficients + C_M)
    c_1 = tl.load(coefficients + C_1)
    c_2 = tl.load(coefficients + C_2)
    c_3 = tl.load(coefficients + C_3)
    g_x = tl.load(coefficients + G_X)
    g_v = tl.load(coefficients + G_V)
    std = tl.load(coefficients + STD)
    q_x = tl.load(coefficients + Q_X)
    q_0 = tl.load(coefficients + Q_0)
    q_m = tl.load(coefficients + Q_M)
    slot = tl.load(coefficients + WRITE)

    # What the row reads.
    x_value, missing = wanted_state(x, base, offset, inside, (p_x != 0) | (c_x != 0) | (q_x != 0), missing)
    extra_wanted = (g_0 != 0) | (g_x != 0) | (g_v != 0)
    extra_value, missing = wanted_state(extra, base, offset, inside, extra_wanted, missing)
    m, missing = network_output(model_output, tl.load(coefficients + W), sample, B, N,
                                offsets(c, s, i, channels, MODEL_LAST), inside,
                                (p_m != 0) | (c_m != 0) | (q_m != 0), missing, GUIDED, LEARNED)
    if gain is not None:
        m *= tl.load(gain + sample)

    # x0.
    limit = tl.load(coefficients + BOUND if bound is None else bound + sample)
    zero = tl.zeros(inside.shape, tl.float32)
    x0 = two_terms(p_x, x_value, p_m, m)
    x0 = tl.clamp(x0, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
    if shrink is not None:
        x0 *= tl.load(shrink + sample)
    if extra is not None:
        x0 = add_term(x0, g_0, extra_value)

    # x'. What is read for one coefficient alone is 0 where that is 0.
    if (c_x != 0) & (c_0 != 0) & (c_m == 0):
        y = tl.fma(c_0, x0, c_x * x_value)
    else:
        y = add_term(add_term(add_term(zero, c_x, x_value), c_0, x0), c_m, m)
    slots = B.to(tl.int64) * N
    if history is None:
        missing |= (c_1 != 0) | (c_2 != 0) | (c_3 != 0)
    else:
        h, missing = wanted_state(history, base, offset, inside, c_1 != 0, missing)
        y = tl.fma(c_1, h, y)
        h, missing = wanted_state(history, base + slots, offset, inside, c_2 != 0, missing)
        y = tl.fma(c_2, h, y)
        h, missing = wanted_state(history, base + 2 * slots, offset, inside, c_3 != 0, missing)
        y = tl.fma(c_3, h, y)
    if LEARNED:
        deviation = zero + 1.0
        if (l_0 != 0) | (l_1 != 0):
            v, missing = raw_variance(model_output, sample, B, N, variance_offset, inside, l_1 != 0, missing, GUIDED)
            deviation = exp(0.5 * add_term(zero + l_0, l_1, v))
    else:
        missing |= l_1 != 0
        deviation = exp(0.5 * l_0)
    if extra is not None:
        y = add_term(add_term(y, g_x, extra_value), g_v, deviation * deviation * extra_value)
    if noise is None:
        if rng is None:
            missing |= std != 0
        elif std != 0:
            z = drawn(rng, sample_ids, sample, STEP_STREAM, blocks, inside.shape, ORDER, ROWS, COLUMNS)
            y = tl.fma(std, deviation * z, y)
    else:
        z = read(noise + base, offset, tl.where(std != 0, inside, False))
        y = add_term(y, std, deviation * z)

    if mask is not None:
        k_0 = tl.load(coefficients + K_0)
        k_n = tl.load(coefficients + K_N)
        known_value, missing = wanted_state(known, base, offset, inside, k_0 != 0, missing)
        z = tl.zeros(inside.shape, tl.float32)
        if known_noise is not None:
            z = read(known_noise + base, offset, tl.where(k_n != 0, inside, False))
        elif rng is None:
            missing |= k_n != 0
        elif k_n != 0:
            z = drawn(rng, sample_ids, sample, KNOWN_STREAM, blocks, inside.shape, ORDER, ROWS, COLUMNS)
        mask_channels = C if MASK_PER_CHANNEL else 1
        mask_base = mask + (sample * S * mask_channels if MASK_PER_SAMPLE else 0)
        mask_offset = offset if MASK_PER_CHANNEL else s
        keep = read(mask_base, mask_offset, inside)
        y = tl.fma(keep, y, (1.0 - keep) * add_term(add_term(zero, k_0, known_value), k_n, z))

    if history is None:
        missing |= slot >= 0
    elif (slot >= 0) & (r >= 0) & (r < R):
        if (q_x != 0) & (q_0 != 0) & (q_m != 0):
            derivative = tl.fma(poisoned(q_m, missing), m, tl.fma(q_0, x0, q_x * x_value))
        else:
            derivative = add_term(two_terms(q_x, x_value, q_0, x0), q_m, m)
            derivative = poisoned(derivative, missing)
        write(history + base + slot.to(tl.int64) * slots, offset, derivative, inside)

    y = poisoned(y, missing)
    write(out + base, offset, y, inside)
    if model_input is not None:
        last = r + 1 >= R
        c_in = tl.load(coefficients + ROW_COLUMNS + C_IN, mask=(missing == 0) & (last == 0), other=1.0)
        for copy in tl.static_range(COPIES):
            write(model_input + base + copy * slots, offsets(c, s, i, C, INPUT_LAST), c_in * y, inside)


def reverse_step(x, model_output, rows, row, out, model_input, history, noise, rng, sample_ids, extra, mask, known,
                 known_noise, gain, bound, shrink):
    """Fills out [B, C, *], model_input and the history slot that the row names."""
    if out.numel() == 0:
        return
    B, C = out.shape[:2]
    layouts = dict(STATE_LAST=channels_last(out), MODEL_LAST=channels_last(model_output),
                   INPUT_LAST=channels_last(model_input))  # fmt: skip
    learned, draws = model_output is not None and model_output.shape[1] == 2 * C, rng is not None
    told_apart = draws or learned or (mask is not None and mask.shape[1] != C)  # elements by channel and position
    tensors = (("STATE_LAST", out), ("MODEL_LAST", model_output), ("INPUT_LAST", model_input))
    scattered = False
    if all(layouts[name] for name, tensor in tensors if tensor is not None):
        scattered = told_apart and can_scatter(out, draws)
        if scattered or not told_apart:  # then memory's order is that of a contiguous tensor, but for pairs of channels
            layouts = dict.fromkeys(layouts, False) | dict(MODEL_LAST=learned)
    mixed = any(layouts.values())
    tiles = plan_tiles(out, mixed, draws, scattered, lanes=1 if draws or mixed else 1 / 2)
    with device_of(out):
        reverse_step_kernel[tiles.grid](
            x, out, noise, extra, known, known_noise, mask, history, model_output, model_input, gain, bound, shrink,
            rows, row, rng, sample_ids, B=B, R=rows.shape[0], ROW_STRIDE=int(row.numel() > 1),
            GUIDED=model_output is not None and model_output.shape[0] == 2 * B,
            LEARNED=learned,
            COPIES=0 if model_input is None else model_input.shape[0] // B,
            MASK_PER_SAMPLE=mask is not None and mask.shape[0] > 1,
            MASK_PER_CHANNEL=mask is not None and mask.shape[1] > 1, **layouts, **tiles.arguments)
