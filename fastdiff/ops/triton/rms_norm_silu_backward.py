"""Gradients of rms_norm_silu, in Triton: no atomics, a fixed partition of every sum.

With n = x * r, dh = grad_y * act'(h), a = weight * (1 + scale), P = sum_s dh and Q = sum_s dh * n per (sample,
channel), and m the mean of a * dh * n over the channels of a position, or 0 where r is limited:

    grad_x = r * (a * dh - n * m)
    grad_weight = sum_b (1 + scale) * Q          grad_scale = weight * Q          grad_shift = P
"""

import torch
import triton
import triton.language as tl

from .group_norm_silu import aligned, channel_values, exponent, modulation, row_stride, slope
from .group_norm_silu_backward import BATCH_BLOCK, CHANNEL_BLOCK, sum_batch_kernel, sum_chunks
from .rms_norm_silu import (
    UNALIGNED,
    UNSPECIALIZED,
    are_inside,
    limited,
    locate_chunk,
    locate_page,
    plan_pages,
    read_parts,
    reciprocal_norm,
    write_parts,
)
from .tiles import channels_last, device_of, index_dtype

ON_CHIP = 8192       # elements of the largest tile: two values each
ROUNDS = 2           # of plan_pages
TILE_BLOCK = 32      # tiles of a sample whose sums are added up at a time


@triton.jit
def chunk_gradient(n, grad_y, a, b, inside, SILU: tl.constexpr):
    """dh of a chunk; 0 outside."""
    dh = read_parts(grad_y, inside)
    if SILU:
        dh *= slope(tl.fma(n, exponent(a, SILU)[:, None], exponent(b, SILU)[:, None]))
    return dh


@triton.jit
def store_sums(partial, Q, P, c, real, C):
    """A tile's, of channels."""
    if partial is not None:
        partial += tl.program_id(0).to(tl.int64) * 2 * C
        tl.store(partial + c, Q, mask=real)
        tl.store(partial + C + c, P, mask=real)


@triton.jit
def mean_of(products, norm, most, C):
    return tl.where(norm >= most, 0.0, tl.div_rn(products, C.to(tl.float32)))


@triton.jit
def input_gradient(n, dh, a, r, mean):
    return r[None, :] * tl.fma(a[:, None], dh, n * -mean[None, :])


@triton.jit
def tile_gradient(grad_y, x, grad_x, base, offset, inside, a, b, C, eps, most, SILU: tl.constexpr,
                  PART: tl.constexpr):
    """dh and dh * n of a tile that has all channels; stores grad_x."""
    values = read_parts(x + base + offset, inside)
    norm = reciprocal_norm(tl.sum(values * values, axis=0), C, eps)
    r = limited(norm, most)
    n = values * r[None, :]
    dh = chunk_gradient(n, grad_y + base + offset, a, b, inside, SILU)
    product = dh * n
    if grad_x is not None:
        mean = mean_of(tl.sum(a[:, None] * product, axis=0), norm, most, C)
        write_parts(grad_x + base + offset, input_gradient(n, dh, a, r, mean), inside, PART)
    return dh, product


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def rms_norm_silu_backward_kernel(grad_y, x,          # [B, C, S]
                                  weight,             # [C] or None
                                  scale, shift,       # [B, C] with unit channel stride, or None
                                  grad_x,             # [B, C, S] or None
                                  partial,            # [B, tiles, 2, C] or None: Q, P
                                  C, S, tiles, eps, most, scale_stride, shift_stride,
                                  SILU: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
                                  SPAN: tl.constexpr, ROUNDS: tl.constexpr, CHUNKS: tl.constexpr, FULL: tl.constexpr,
                                  INDEX: tl.constexpr):
    sample, s = locate_page(tiles, ROUNDS * SPAN, SPAN)
    if CHUNKS == 1:
        c, real, base, offset = locate_chunk(0, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
        a, b = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
        inside = are_inside(real, s, S, PART, FULL)
        P, Q = tile_gradient(grad_y, x, grad_x, base, offset, inside, a, b, C, eps, most, SILU, PART)
        for round in range(1, ROUNDS):
            offset += SPAN * C if LAST else SPAN
            inside = are_inside(real, s + round * SPAN, S, PART, FULL)
            dh, product = tile_gradient(grad_y, x, grad_x, base, offset, inside, a, b, C, eps, most, SILU, PART)
            P += dh
            Q += product
        store_sums(partial, tl.sum(Q, axis=1), tl.sum(P, axis=1), c, real, C)
    else:
        squares = tl.zeros((SPAN,), tl.float32)
        for chunk in range(CHUNKS):
            c, real, base, offset = locate_chunk(chunk, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
            values = read_parts(x + base + offset, are_inside(real, s, S, PART, FULL))
            squares += tl.sum(values * values, axis=0)
        norm = reciprocal_norm(squares, C, eps)
        r = limited(norm, most)
        products = tl.zeros((SPAN,), tl.float32)
        for chunk in range(CHUNKS):
            c, real, base, offset = locate_chunk(chunk, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
            a, b = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
            inside = are_inside(real, s, S, PART, FULL)
            n = read_parts(x + base + offset, inside) * r[None, :]
            dh = chunk_gradient(n, grad_y + base + offset, a, b, inside, SILU)
            product = dh * n
            store_sums(partial, tl.sum(product, axis=1), tl.sum(dh, axis=1), c, real, C)
            products += tl.sum(a[:, None] * product, axis=0)
        if grad_x is not None:
            mean = mean_of(products, norm, most, C)
            for chunk in range(CHUNKS):
                c, real, base, offset = locate_chunk(chunk, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
                a, b = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
                inside = are_inside(real, s, S, PART, FULL)
                n = read_parts(x + base + offset, inside) * r[None, :]
                dh = chunk_gradient(n, grad_y + base + offset, a, b, inside, SILU)
                write_parts(grad_x + base + offset, input_gradient(n, dh, a, r, mean), inside, PART)


@triton.jit(do_not_specialize=["scale_stride"], do_not_specialize_on_alignment=UNALIGNED)
def sample_sums_kernel(partial,                  # [B, tiles, 2, C]: Q, P
                       weight, scale,            # as in rms_norm_silu_backward_kernel
                       grad_scale, grad_shift,   # [B, C] or None
                       sums,                     # [B, 2, C] or None: waits, its first half, for the sum over the batch
                       C, tiles, channel_tiles, scale_stride, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    sample = (tl.program_id(0) // channel_tiles).to(tl.int64)
    c = tl.program_id(0) % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    partial += sample * tiles * 2 * C
    Q = sum_chunks(partial, tiles, 2 * C, c, real, BLOCK)
    if grad_shift is not None:
        P = sum_chunks(partial + C, tiles, 2 * C, c, real, BLOCK)
        tl.store(grad_shift + sample * C + c, P.to(grad_shift.dtype.element_ty), mask=real)
    if grad_scale is not None:
        value = channel_values(weight, c, real, 1.0) * Q
        tl.store(grad_scale + sample * C + c, value.to(grad_scale.dtype.element_ty), mask=real)
    if sums is not None:
        gain = 1.0 + channel_values(scale, sample * scale_stride + c, real, 0.0)
        tl.store(sums + 2 * sample * C + c, gain * Q, mask=real)


def rms_norm_silu_backward(grad_y, x, weight, eps, most, scale, shift, silu, grad_x, grad_weight, grad_scale,
                           grad_shift):
    """Fills the gradients that are not None; grad_x [B, C, *] in x's layout."""
    of_channels = [gradient for gradient in (grad_weight, grad_scale, grad_shift) if gradient is not None]
    if x.numel() == 0:
        for gradient in of_channels:
            gradient.zero_()
        return
    B, C = x.shape[:2]
    S, last = x[0, 0].numel(), channels_last(x)
    plan = plan_pages(x, last, ON_CHIP, "rms_norm_silu_backward", ROUNDS)
    with device_of(x):
        partial = torch.empty((B, plan.tiles, 2, C), dtype=torch.float32, device=x.device) if of_channels else None
        rms_norm_silu_backward_kernel[(B * plan.tiles,)](
            aligned(grad_y), aligned(x), weight, scale, shift, grad_x, partial, C, S, plan.tiles, eps, most,
            row_stride(scale), row_stride(shift), SILU=silu, LAST=last, WIDTH=plan.WIDTH, PART=plan.PART,
            SPAN=plan.SPAN, ROUNDS=plan.ROUNDS, CHUNKS=plan.CHUNKS, FULL=plan.full(C, S), INDEX=index_dtype(C * S),
            num_warps=plan.num_warps,
            enable_fp_fusion=False)  # a product fused into a sum's first step would differ from lane to lane
        if of_channels:
            _sum_tiles(partial, weight, scale, grad_weight, grad_scale, grad_shift)


def _sum_tiles(partial, weight, scale, grad_weight, grad_scale, grad_shift):
    """Over the tiles of each sample, then over the batch."""
    B, tiles, _, C = partial.shape
    blocks = triton.cdiv(C, CHANNEL_BLOCK)
    sums = torch.empty((B, 2, C), dtype=torch.float32, device=partial.device) if grad_weight is not None else None
    sample_sums_kernel[(B * blocks,)](partial, weight, scale, grad_scale, grad_shift, sums, C, tiles, blocks,
                                      row_stride(scale), BLOCK=TILE_BLOCK, CHANNELS=CHANNEL_BLOCK)
    if sums is not None:
        sum_batch_kernel[(blocks,)](sums, grad_weight, None, B, C, BATCH=BATCH_BLOCK, CHANNELS=CHANNEL_BLOCK)
