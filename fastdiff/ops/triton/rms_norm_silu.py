"""RMSNorm over the channels, a scale-shift after it and SiLU, forward, in Triton.

A program has some positions of a sample with all their channels, read once; more channels than fit on chip are cut
into chunks, which are read again.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from . import blocks
from .group_norm_silu import aligned, apply_map, modulation, row_stride, tile_offsets
from .tiles import channels_last, device_of, index_dtype, power_of_two

ON_CHIP = 32768    # bytes of the largest tile
SECTOR = 32        # bytes: what one row of a tile should at least cover

UNALIGNED = ["weight", "scale", "shift"]
UNSPECIALIZED = ["scale_stride", "shift_stride"]


class Pages(NamedTuple):
    """How a [B, C, S] image is cut into tiles [CHUNKS * WIDTH channels, SPAN positions]."""

    WIDTH: int     # channels of a chunk, a power of two
    SPAN: int      # positions, a power of two
    CHUNKS: int
    tiles: int     # of a sample
    num_warps: int

    def full(self, C, S):
        """Whether all elements of all tiles exist."""
        return C % self.WIDTH == 0 and S % self.SPAN == 0


def plan_pages(x, last, on_chip, kind):
    """Tiles of at most `on_chip` elements, of the table's block where more are not needed.

    They depend on nothing but x's shape, layout and element size, and the table.
    """
    C, S, itemsize = x.shape[1], x[0, 0].numel(), x.element_size()
    sizes = blocks.row(kind, C * S, x)
    least = 1 if last else min(power_of_two(S), SECTOR // itemsize)
    width = min(power_of_two(C), on_chip // least)
    span = min(power_of_two(S), max(least, sizes.block // width))
    pages = Pages(width, span, triton.cdiv(C, width), triton.cdiv(S, span), 0)
    return pages._replace(num_warps=sizes.warps(width * span, pages.full(C, S)))


@triton.jit
def locate_page(S, tiles, SPAN: tl.constexpr, FULL: tl.constexpr):
    """This program's sample (int64), positions and whether these exist."""
    program = tl.program_id(0)
    s = program % tiles * SPAN + tl.arange(0, SPAN)
    return (program // tiles).to(tl.int64), s, tl.full((SPAN,), 1, tl.int1) if FULL else s < S


@triton.jit
def read_chunk(x, chunk, sample, s, exists, C, S, WIDTH: tl.constexpr, LAST: tl.constexpr, FULL: tl.constexpr,
               INDEX: tl.constexpr):
    """A chunk's values; its channels and whether these exist; the tile's offsets and where it is inside."""
    c = chunk * WIDTH + tl.arange(0, WIDTH)
    real = tl.full((WIDTH,), 1, tl.int1) if FULL else c < C
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    inside = real[:, None] & exists[None, :]
    return tl.load(x + base + offset, mask=inside, other=0.0).to(tl.float32), c, real, base + offset, inside


@triton.jit
def reciprocal_norm(squares, C, eps):
    """1 / sqrt(mean of squares + eps) of each position."""
    return 1.0 / tl.sqrt_rn(tl.fma(squares, tl.div_rn(1.0, C.to(tl.float32)), eps))


@triton.jit
def limited(r, most):
    return tl.minimum(r, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def rms_norm_silu_kernel(x,               # [B, C, S]
                         weight,          # [C] or None
                         scale, shift,    # [B, C] with unit channel stride, or None
                         y,               # [B, C, S]
                         C, S, tiles, eps, most, scale_stride, shift_stride,
                         SILU: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
                         CHUNKS: tl.constexpr, FULL: tl.constexpr, INDEX: tl.constexpr):
    sample, s, exists = locate_page(S, tiles, SPAN, FULL)
    values, c, real, offset, inside = read_chunk(x, 0, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
    squares = tl.sum(values * values, axis=0)
    for chunk in range(1, CHUNKS):
        values, c, real, offset, inside = read_chunk(x, chunk, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
        squares += tl.sum(values * values, axis=0)
    r = limited(reciprocal_norm(squares, C, eps), most)
    for step in range(CHUNKS):
        chunk = CHUNKS - 1 - step
        if CHUNKS > 1:
            values, c, real, offset, inside = read_chunk(x, chunk, sample, s, exists, C, S, WIDTH, LAST, FULL, INDEX)
        gain, start = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
        h = apply_map(values * r[None, :], gain, start, SILU)
        tl.store(y + offset, h.to(y.dtype.element_ty), mask=inside)


def rms_norm_silu(x, weight, eps, most, scale, shift, silu, y):
    """Fills y [B, C, *]."""
    if x.numel() == 0:
        return
    B, C = x.shape[:2]
    S, last = x[0, 0].numel(), channels_last(x)
    plan = plan_pages(x, last, ON_CHIP // x.element_size(), "rms_norm_silu")
    with device_of(x):
        rms_norm_silu_kernel[(B * plan.tiles,)](
            aligned(x), weight, scale, shift, y, C, S, plan.tiles, eps, most, row_stride(scale), row_stride(shift),
            SILU=silu, LAST=last, WIDTH=plan.WIDTH, SPAN=plan.SPAN, CHUNKS=plan.CHUNKS, FULL=plan.full(C, S),
            INDEX=index_dtype(C * S), num_warps=plan.num_warps)
