"""Gradients of group_norm_silu, in Triton: no atomics, a fixed partition of every sum.

With dh = drop(grad_y) * act'(h), P = sum_s dh, Q = sum_s dh * n and R = sum_s n per (sample, channel),
a = weight * (1 + scale), and A, Bq the means over a group of a * dh and a * dh * n:

    grad_x = rstd * (a * dh - A - n * Bq)        grad_add = rstd * (a * P - S * A - R * Bq)
    grad_weight = sum_b (1 + scale) * Q          grad_bias = sum_b (1 + scale) * P
    grad_scale = weight * Q + bias * P           grad_shift = P
"""

import torch
import triton
import triton.language as tl

from .group_norm_silu import (
    UNALIGNED,
    UNSPECIALIZED,
    aligned,
    blocks_are_whole,
    channel_values,
    exponent,
    group_sums,
    kept,
    locate_groups,
    merge_warps,
    modulation,
    normalized,
    plan_groups,
    row_stride,
    slope,
    tile_offsets,
    to_channels,
)
from .tiles import channels_last, device_of, index_dtype, power_of_two

MERGE = 2048         # partial sums merged at a time
MOST = 8192          # elements of a tile of whole groups where registers do not suffice for more: _plan
WIDTHS_WITH_DROPOUT = (4, 16)
BATCH_BLOCK = 16     # samples and channels of a tile in the sum over the batch
CHANNEL_BLOCK = 64


@triton.jit
def tile_gradient(grad_y, n, inside, a, b, rng, sample_ids, sample, threshold, factor, stream_id, c, start, S,
                  SILU: tl.constexpr, SPAN: tl.constexpr, BLOCKS: tl.constexpr, INDEX: tl.constexpr):
    """dh of a tile; 0 outside."""
    dh = tl.load(grad_y, mask=inside, other=0.0).to(tl.float32)
    if rng is not None:
        keep = kept(rng, sample_ids, sample, threshold, stream_id, c, start, S, SPAN, BLOCKS, INDEX)
        dh = tl.where(keep, dh * factor, 0.0)
    if SILU:
        dh *= slope(tl.fma(n, exponent(a, SILU)[:, None], exponent(b, SILU)[:, None]))
    return dh


@triton.jit
def input_gradient(n, dh, a, deviation, mean_a, mean_b):
    """rstd * (a * dh - A - n * Bq), the last four of channels."""
    moved = tl.fma((a * deviation)[:, None], dh, (-mean_a * deviation)[:, None])
    return tl.fma(n, (-mean_b * deviation)[:, None], moved)


@triton.jit
def store_channel_gradients(P, Q, R, a, deviation, mean_a, mean_b, S,          # [channels]
                            weight, bias, scale, sample, scale_stride, c, real, C,
                            grad_add, grad_scale, grad_shift,                  # [B, C] or None
                            sums):                                             # [2, B, C] or None
    """Everything but grad_x that one (sample, channel) contributes; `sums` waits for the sum over the batch."""
    at = sample * C + c
    if grad_shift is not None:
        tl.store(grad_shift + at, P.to(grad_shift.dtype.element_ty), mask=real)
    if grad_scale is not None:
        value = tl.fma(channel_values(weight, c, real, 1.0), Q, channel_values(bias, c, real, 0.0) * P)
        tl.store(grad_scale + at, value.to(grad_scale.dtype.element_ty), mask=real)
    if grad_add is not None:
        value = deviation * (tl.fma(a, P, -S * mean_a) - R * mean_b)
        tl.store(grad_add + at, value.to(grad_add.dtype.element_ty), mask=real)
    if sums is not None:
        gain = 1.0 + channel_values(scale, sample * scale_stride + c, real, 0.0)
        tl.store(sums + 2 * sample * C + c, gain * Q, mask=real)
        tl.store(sums + 2 * sample * C + C + c, gain * P, mask=real)


@triton.jit
def rounded(product, SPAN: tl.constexpr):
    """Before it is summed. Where a thread has one element of a row, the product would be contracted with the first
    addition: two lanes, each adding its own, not rounded, to the other's, would come to sums that differ."""
    return product + 0.0 if SPAN <= 128 else product


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def whole_groups_backward_kernel(grad_y, x,                          # [B, C, S]
                                 mean, rstd,                         # [B, G]
                                 weight, bias,                       # [C] or None
                                 add, scale, shift,                  # [B, C] with unit channel stride, or None
                                 grad_x,                             # [B, C, S] or None
                                 grad_add, grad_scale, grad_shift,   # [B, C] or None
                                 sums,                               # [B, 2, C] or None
                                 rng, sample_ids,                    # [2] and [B] int64, or None
                                 C, S, G, group_tiles, count, add_stride, scale_stride, shift_stride, threshold,
                                 factor, stream_id, SILU: tl.constexpr, LAST: tl.constexpr, D: tl.constexpr,
                                 GROUPS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
                                 BLOCKS: tl.constexpr, INDEX: tl.constexpr):
    sample, _, _, c, real, s, inside = locate_groups(S, G, group_tiles, 1, 1, D, GROUPS, WIDTH, SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    n = normalized(x + base + offset, inside, add, sample * add_stride + c, mean + sample * G, rstd + sample * G, c,
                   real, D)
    a, b = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    dh = tile_gradient(grad_y + base + offset, n, inside, a, b, rng, sample_ids, sample, threshold, factor, stream_id,
                       c, 0, S, SILU, SPAN, BLOCKS, INDEX)
    P = tl.sum(rounded(dh, SPAN), axis=1)
    Q = tl.sum(rounded(dh * n, SPAN), axis=1)
    R = tl.sum(rounded(n, SPAN), axis=1) if grad_add is not None else P
    mean_a = to_channels(tl.div_rn(group_sums(a * P, GROUPS, WIDTH), count), GROUPS, WIDTH)
    mean_b = to_channels(tl.div_rn(group_sums(a * Q, GROUPS, WIDTH), count), GROUPS, WIDTH)
    deviation = tl.load(rstd + sample * G + c // D, mask=real, other=0.0)
    store_channel_gradients(P, Q, R, a, deviation, mean_a, mean_b, S, weight, bias, scale, sample, scale_stride, c,
                            real, C, grad_add, grad_scale, grad_shift, sums)
    if grad_x is not None:
        value = input_gradient(n, dh, a, deviation, mean_a, mean_b)
        tl.store(grad_x + base + offset, value.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def chunk_sums_kernel(grad_y, x, mean, rstd, weight, bias, add, scale, shift,  # as in whole_groups_backward_kernel
                      partial,                                                 # [B, position_chunks, 3, C]: P, Q, R
                      rng, sample_ids, C, S, G, group_tiles, chunks, position_chunks, add_stride, scale_stride,
                      shift_stride, threshold, factor, stream_id, SILU: tl.constexpr, LAST: tl.constexpr,
                      D: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
                      FULL: tl.constexpr, BLOCKS: tl.constexpr, INDEX: tl.constexpr):
    sample, chunk, _, c, real, s, inside = locate_groups(S, G, group_tiles, chunks, position_chunks, D, GROUPS, WIDTH,
                                                         SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    n = normalized(x + base + offset, inside, add, sample * add_stride + c, mean + sample * G, rstd + sample * G, c,
                   real, D)
    a, b = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    dh = tile_gradient(grad_y + base + offset, n, inside, a, b, rng, sample_ids, sample, threshold, factor, stream_id,
                       c, chunk % position_chunks * SPAN, S, SILU, SPAN, BLOCKS, INDEX)
    partial += (sample * position_chunks + chunk % position_chunks) * 3 * C
    tl.store(partial + c, tl.sum(dh, axis=1), mask=real)
    tl.store(partial + C + c, tl.sum(dh * n, axis=1), mask=real)
    tl.store(partial + 2 * C + c, tl.sum(n, axis=1), mask=real)


@triton.jit
def sum_chunks(partial, position_chunks, stride, lane, real, BLOCK: tl.constexpr):
    """[position_chunks, channels] to [channels]."""
    total = tl.zeros(lane.shape, tl.float32)
    for start in range(0, position_chunks, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = (row < position_chunks)[:, None] & real[None, :]
        total += tl.sum(tl.load(partial + row.to(tl.int64)[:, None] * stride + lane[None, :], mask=inside, other=0.0),
                        axis=0)
    return total


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def merge_sums_kernel(partial,                                      # [B, position_chunks, 3, C]
                      rstd, weight, bias, scale, shift,             # as in whole_groups_backward_kernel
                      grad_add, grad_scale, grad_shift, sums,
                      means,                                        # [B, G, 2]: A, Bq
                      C, S, G, position_chunks, count, scale_stride, shift_stride,
                      D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    sample = (program // G).to(tl.int64)
    within = tl.arange(0, WIDTH)
    real = within < D
    c = program % G * D + within
    partial += sample * position_chunks * 3 * C
    P = sum_chunks(partial, position_chunks, 3 * C, c, real, BLOCK)
    Q = sum_chunks(partial + C, position_chunks, 3 * C, c, real, BLOCK)
    R = sum_chunks(partial + 2 * C, position_chunks, 3 * C, c, real, BLOCK)
    a, _ = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    mean_a = tl.div_rn(tl.sum(a * P, axis=0), count)
    mean_b = tl.div_rn(tl.sum(a * Q, axis=0), count)
    tl.store(means + program.to(tl.int64) * 2, mean_a)
    tl.store(means + program.to(tl.int64) * 2 + 1, mean_b)
    store_channel_gradients(P, Q, R, a, tl.load(rstd + program), mean_a, mean_b, S, weight, bias, scale, sample,
                            scale_stride, c, real, C, grad_add, grad_scale, grad_shift, sums)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def apply_gradient_kernel(grad_y, x, mean, rstd, weight, bias, add, scale, shift, grad_x,  # as above
                          means,                                                           # [B, G, 2]: A, Bq
                          rng, sample_ids, C, S, G, group_tiles, chunks, position_chunks, add_stride, scale_stride,
                          shift_stride, threshold, factor, stream_id, SILU: tl.constexpr, LAST: tl.constexpr,
                          D: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
                          FULL: tl.constexpr, BLOCKS: tl.constexpr, INDEX: tl.constexpr):
    sample, chunk, _, c, real, s, inside = locate_groups(S, G, group_tiles, chunks, position_chunks, D, GROUPS, WIDTH,
                                                         SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    n = normalized(x + base + offset, inside, add, sample * add_stride + c, mean + sample * G, rstd + sample * G, c,
                   real, D)
    a, b = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    dh = tile_gradient(grad_y + base + offset, n, inside, a, b, rng, sample_ids, sample, threshold, factor, stream_id,
                       c, chunk % position_chunks * SPAN, S, SILU, SPAN, BLOCKS, INDEX)
    group = sample * G + c // D
    mean_a = tl.load(means + group * 2, mask=real, other=0.0)
    mean_b = tl.load(means + group * 2 + 1, mask=real, other=0.0)
    deviation = tl.load(rstd + group, mask=real, other=0.0)
    value = input_gradient(n, dh, a, deviation, mean_a, mean_b)
    tl.store(grad_x + base + offset, value.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B"])
def sum_batch_kernel(sums,                        # [B, 2, C]
                     grad_weight, grad_bias,      # [C] or None
                     B, C, BATCH: tl.constexpr, CHANNELS: tl.constexpr):
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    if grad_weight is not None:
        total = sum_chunks(sums, B, 2 * C, c, real, BATCH)
        tl.store(grad_weight + c, total.to(grad_weight.dtype.element_ty), mask=real)
    if grad_bias is not None:
        total = sum_chunks(sums + C, B, 2 * C, c, real, BATCH)
        tl.store(grad_bias + c, total.to(grad_bias.dtype.element_ty), mask=real)


def group_norm_silu_backward(grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu,
                             grad_x, grad_weight, grad_bias, grad_add, grad_scale, grad_shift, rng=None,
                             sample_ids=None, threshold=0, factor=1.0, stream=0):
    """Fills the gradients that are not None; grad_x [B, C, *] in x's layout."""
    outputs = (grad_weight, grad_bias, grad_add, grad_scale, grad_shift)
    if x.numel() == 0:
        for output in outputs:
            if output is not None:
                output.zero_()
        return
    B, C = x.shape[:2]
    with device_of(x):
        sums = None
        if grad_weight is not None or grad_bias is not None:
            sums = torch.empty((B, 2, C), dtype=torch.float32, device=x.device)
        drop = dict(rng=rng, sample_ids=sample_ids, threshold=threshold, factor=factor, stream_id=stream)
        _sample_gradients(aligned(grad_y), aligned(x), mean, rstd, weight, bias, groups, add, scale, shift, silu,
                          grad_x, grad_add, grad_scale, grad_shift, sums, drop)
        if sums is not None:
            sum_batch_kernel[(triton.cdiv(C, CHANNEL_BLOCK),)](sums, grad_weight, grad_bias, B, C, BATCH=BATCH_BLOCK,
                                                               CHANNELS=CHANNEL_BLOCK)


def _plan(x, groups, last, film, drops):
    """As the table has it; tiles of more than MOST elements only where they do not spill on any architecture."""
    kind, S, D = "group_norm_silu_backward", x[0, 0].numel(), x.shape[1] // groups
    plan = plan_groups(x, groups, last, kind)
    suffice = last and not film and plan.full(groups, D, S) and (D in WIDTHS_WITH_DROPOUT if drops else D > 1)
    return plan if suffice else plan_groups(x, groups, last, kind, MOST)


def _sample_gradients(grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu, grad_x, grad_add,
                      grad_scale, grad_shift, sums, drop):
    """Everything but the sum over the batch, in one kernel or, where a group does not fit on chip, three."""
    B, C = x.shape[:2]
    S, D = x[0, 0].numel(), C // groups
    last, count = channels_last(x), float(D * S)
    plan = _plan(x, groups, last, any(term is not None for term in (add, scale, shift)),
                 drop["rng"] is not None)
    shape = dict(C=C, S=S, G=groups, group_tiles=plan.group_tiles, SILU=silu, LAST=last, D=D, GROUPS=plan.GROUPS,
                 WIDTH=plan.WIDTH, SPAN=plan.SPAN, FULL=plan.full(groups, D, S),
                 BLOCKS=blocks_are_whole(drop["rng"], S, plan.SPAN), INDEX=index_dtype(C * S),
                 num_warps=plan.num_warps, **drop)
    strides = dict(add_stride=row_stride(add), scale_stride=row_stride(scale), shift_stride=row_stride(shift))
    given = (grad_y, x, mean, rstd, weight, bias, add, scale, shift)
    grid = (B * plan.group_tiles * plan.chunks,)
    if plan.whole:
        whole_groups_backward_kernel[grid](*given, grad_x, grad_add, grad_scale, grad_shift, sums, count=count,
                                           **strides, **shape)
        return
    chunks = dict(chunks=plan.chunks, position_chunks=plan.position_chunks)
    partial = torch.empty((B, plan.position_chunks, 3, C), dtype=torch.float32, device=x.device)
    means = torch.empty((B, groups, 2), dtype=torch.float32, device=x.device)
    width = power_of_two(D)
    block = min(power_of_two(plan.position_chunks), max(1, MERGE // width))
    chunk_sums_kernel[grid](*given, partial, **chunks, **strides, **shape)
    merge_sums_kernel[(B * groups,)](
        partial, rstd, weight, bias, scale, shift, grad_add, grad_scale, grad_shift, sums, means, C, S, groups,
        position_chunks=plan.position_chunks, count=count, scale_stride=strides["scale_stride"],
        shift_stride=strides["shift_stride"], D=D, WIDTH=width,
        BLOCK=block, num_warps=merge_warps(block * width))
    if grad_x is not None:
        apply_gradient_kernel[grid](*given, grad_x, means, **chunks, **strides, **shape)
