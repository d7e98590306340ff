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
    limited,
    locate_page,
    plan_pages,
    read_chunk,
    reciprocal_norm,
)
from .tiles import channels_last, device_of, index_dtype

ON_CHIP = 8192       # elements of the largest tile: two values each
TILE_BLOCK = 32      # tiles of a sample whose sums are added up at a time


@triton.jit
def chunk_gradient(values, grad_y, weight, scale, shift, scale_stride, shift_stride, r, sample, c, real, inside,
                   SILU: tl.constexpr):
    """n and dh of a chunk, and the gain of its channels."""
    n = values * r[None, :]
    a, b = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
    dh = tl.load(grad_y, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        dh *= slope(tl.fma(n, exponent(a, SILU)[:, None], exponent(b, SILU)[:, None]))
    return n, dh, a


@triton.jit
def add_chunk(products, partial, n, dh, a, c, real, C):
    """products [positions] and a * dh * n; stores the chunk's sums over the positions."""
    product = dh * n
    if partial is not None:
        sums = partial + tl.program_id(0).to(tl.int64) * 2 * C
        tl.store(sums + c, tl.sum(product, axis=1), mask=real)
        tl.store(sums + C + c, tl.sum(dh, axis=1), mask=real)
    return products + tl.sum(a[:, None] * product, axis=0)


@triton.jit
def mean_of(products, norm, most, C):
    return tl.where(norm >= most, 0.0, tl.div_rn(products, C.to(tl.float32)))


@triton.jit
def write_chunk(grad_x, n, dh, a, r, mean, inside):
    value = r[None, :] * tl.fma(a[:, None], dh, n * -mean[None, :])
    tl.store(grad_x, value.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def rms_norm_silu_backward_kernel(grad_y, x,          # [B, C, S]
                                  weight,             # [C] or None
                                  scale, shift,       # [B, C] with unit channel stride, or None
                                  grad_x,             # [B, C, S] or None
                                  partial,            # [B, tiles, 2, C] or None: Q, P
                                  C, S, tiles, eps, most, scale_stride, shift_stride,
                                  SILU: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
                                  CHUNKS: tl.constexpr, FULL: tl.constexpr, INDEX: tl.constexpr):
    sample, s, exists = locate_page(S, tiles, SPAN, FULL)
    values, c, real, offset, inside = read_chunk(x, 0, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
    squares = tl.sum(values * values, axis=0)
    for chunk in range(1, CHUNKS):
        values, c, real, offset, inside = read_chunk(x, chunk, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
        squares += tl.sum(values * values, axis=0)
    norm = reciprocal_norm(squares, C, eps)
    r = limited(norm, most)
    products = tl.zeros((SPAN,), tl.float32)
    if CHUNKS == 1:
        n, dh, a = chunk_gradient(values, grad_y + offset, weight, scale, shift, scale_stride, shift_stride, r, sample,
                                  c, real, inside, SILU)
        products = add_chunk(products, partial, n, dh, a, c, real, C)
        if grad_x is not None:
            write_chunk(grad_x + offset, n, dh, a, r, mean_of(products, norm, most, C), inside)
    else:
        for chunk in range(CHUNKS):
            values, c, real, offset, inside = read_chunk(x, chunk, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
            n, dh, a = chunk_gradient(values, grad_y + offset, weight, scale, shift, scale_stride, shift_stride, r,
                                      sample, c, real, inside, SILU)
            products = add_chunk(products, partial, n, dh, a, c, real, C)
        if grad_x is not None:
            mean = mean_of(products, norm, most, C)
            for chunk in range(CHUNKS):
                values, c, real, offset, inside = read_chunk(x, chunk, sample, s, exists, C, S, WIDTH, LAST, FULL,
                                                             INDEX)
                n, dh, a = chunk_gradient(values, grad_y + offset, weight, scale, shift, scale_stride, shift_stride, r,
                                          sample, c, real, inside, SILU)
                write_chunk(grad_x + offset, n, dh, a, r, mean, inside)


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
    plan = plan_pages(x, last, ON_CHIP, "rms_norm_silu_backward")
    with device_of(x):
        partial = torch.empty((B, plan.tiles, 2, C), device=x.device) if of_channels else None
        rms_norm_silu_backward_kernel[(B * plan.tiles,)](
            aligned(grad_y), aligned(x), weight, scale, shift, grad_x, partial, C, S, plan.tiles, eps, most,
            row_stride(scale), row_stride(shift), SILU=silu, LAST=last, WIDTH=plan.WIDTH, SPAN=plan.SPAN,
            CHUNKS=plan.CHUNKS, FULL=plan.full(C, S), INDEX=index_dtype(C * S), num_warps=plan.num_warps,
            enable_fp_fusion=False)  # a product fused into a sum's first step would differ from lane to lane
        if of_channels:
            _sum_tiles(partial, weight, scale, grad_weight, grad_scale, grad_shift)


def _sum_tiles(partial, weight, scale, grad_weight, grad_scale, grad_shift):
    """Over the tiles of each sample, then over the batch."""
    B, tiles, _, C = partial.shape
    blocks = triton.cdiv(C, CHANNEL_BLOCK)
    sums = torch.empty((B, 2, C), device=partial.device) if grad_weight is not None else None
    sample_sums_kernel[(B * blocks,)](partial, weight, scale, grad_scale, grad_shift, sums, C, tiles, blocks,
                                      row_stride(scale), BLOCK=TILE_BLOCK, CHANNELS=CHANNEL_BLOCK)
    if sums is not None:
        sum_batch_kernel[(blocks,)](sums, grad_weight, None, B, C, BATCH=BATCH_BLOCK, CHANNELS=CHANNEL_BLOCK)
