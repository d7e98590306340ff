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
LINE = 256         # bytes of a part of a position's channels, of which 16 lanes have 16 each
ROUNDS = 4         # tiles that a program takes, channels last, where all are full
SECTOR = 32        # bytes: what one row of a tile should at least cover

UNALIGNED = ["weight", "scale", "shift"]
UNSPECIALIZED = ["scale_stride", "shift_stride"]


class Pages(NamedTuple):
    """How a [B, C, S] image is cut into tiles [CHUNKS * WIDTH channels, ROUNDS * SPAN positions]."""

    WIDTH: int     # channels of a chunk, a power of two
    PART: int      # of these, what lies side by side
    SPAN: int      # positions at a time, a power of two
    ROUNDS: int
    CHUNKS: int
    tiles: int     # of a sample
    num_warps: int

    def full(self, C, S):
        """Whether all elements of all tiles exist."""
        return C % self.WIDTH == 0 and S % (self.ROUNDS * self.SPAN) == 0


def plan_pages(x, last, on_chip, kind, rounds):
    """Tiles of at most `on_chip` elements, of the table's block where more are not needed, channels last `rounds` a
    program, half of one at a time: a lane's terms and addresses serve them all.

    They depend on nothing but x's shape, layout and element size, and the table.
    """
    C, S, itemsize = x.shape[1], x[0, 0].numel(), x.element_size()
    sizes = blocks.row(kind, C * S, x)
    least = 1 if last else min(power_of_two(S), SECTOR // itemsize)
    width = min(power_of_two(C), on_chip // least)
    span = min(power_of_two(S), max(least, sizes.block // width))
    chunks = triton.cdiv(C, width)
    part = min(width, LINE // itemsize) if last else width
    pages = Pages(width, part, span, 1, chunks, triton.cdiv(S, span), 0)
    pages = pages._replace(num_warps=sizes.warps(width * span, pages.full(C, S)))
    if not last or chunks > 1 or span == 1 or not pages.full(C, S):
        return pages
    rounds = min(rounds, pages.tiles & -pages.tiles)
    return pages._replace(SPAN=span // 2, ROUNDS=2 * rounds, tiles=pages.tiles // rounds)


@triton.jit
def locate_page(tiles, POSITIONS: tl.constexpr, SPAN: tl.constexpr):
    """This program's sample (int64), and the first SPAN of its POSITIONS."""
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), program % tiles * POSITIONS + tl.arange(0, SPAN)


@triton.jit
def locate_chunk(chunk, sample, s, C, S, WIDTH: tl.constexpr, PART: tl.constexpr, LAST: tl.constexpr,
                 FULL: tl.constexpr, INDEX: tl.constexpr):
    """A chunk's channels and whether these exist; the offset of a sample, and by parts those of
    the elements in it."""
    c = chunk * WIDTH + tl.arange(0, WIDTH)
    real = tl.full((WIDTH,), 1, tl.int1) if FULL else c < C
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    return c, real, base, by_parts(offset, PART)


@triton.jit
def by_parts(tile, PART: tl.constexpr):
    """[channels, positions] as [parts, PART, positions]. A position's part is a stretch of memory that few lanes have,
    and these have the same of each part: so its sum is made of few lanes' sums."""
    return tl.reshape(tile, (tile.shape[0] // PART, PART, tile.shape[1]))


@triton.jit
def are_inside(real, s, S, PART: tl.constexpr, FULL: tl.constexpr):
    """Which elements exist, by parts."""
    exists = tl.full(s.shape, 1, tl.int1) if FULL else s < S
    return by_parts(real[:, None] & exists[None, :], PART)


@triton.jit
def read_parts(pointer, inside):
    """[channels, positions], 0 where there is nothing."""
    values = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
    return tl.reshape(values, (values.shape[0] * values.shape[1], values.shape[2]))


@triton.jit
def write_parts(pointer, value, inside, PART: tl.constexpr):
    tl.store(pointer, by_parts(value, PART).to(pointer.dtype.element_ty), mask=inside)


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
                         SILU: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
                         SPAN: tl.constexpr, ROUNDS: tl.constexpr, CHUNKS: tl.constexpr, FULL: tl.constexpr,
                         INDEX: tl.constexpr):
    sample, s = locate_page(tiles, ROUNDS * SPAN, SPAN)
    if CHUNKS == 1:
        c, real, base, offset = locate_chunk(0, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
        gain, start = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
        source = x + base + offset
        target = y + base + offset
        for round in range(ROUNDS):
            inside = are_inside(real, s + round * SPAN, S, PART, FULL)
            values = read_parts(source, inside)
            r = limited(reciprocal_norm(tl.sum(values * values, axis=0), C, eps), most)
            write_parts(target, apply_map(values * r[None, :], gain, start, SILU), inside, PART)
            source += SPAN * C if LAST else SPAN
            target += SPAN * C if LAST else SPAN
    else:
        squares = tl.zeros((SPAN,), tl.float32)
        for chunk in range(CHUNKS):
            c, real, base, offset = locate_chunk(chunk, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
            values = read_parts(x + base + offset, are_inside(real, s, S, PART, FULL))
            squares += tl.sum(values * values, axis=0)
        r = limited(reciprocal_norm(squares, C, eps), most)
        for step in range(CHUNKS):
            c, real, base, offset = locate_chunk(CHUNKS - 1 - step, sample, s, C, S, WIDTH, PART, LAST, FULL, INDEX)
            inside = are_inside(real, s, S, PART, FULL)
            values = read_parts(x + base + offset, inside)
            gain, start = modulation(weight, None, scale, shift, sample, scale_stride, shift_stride, c, real)
            write_parts(y + base + offset, apply_map(values * r[None, :], gain, start, SILU), inside, PART)


def rms_norm_silu(x, weight, eps, most, scale, shift, silu, y):
    """Fills y [B, C, *]."""
    if x.numel() == 0:
        return
    B, C = x.shape[:2]
    S, last = x[0, 0].numel(), channels_last(x)
    plan = plan_pages(x, last, ON_CHIP // x.element_size(), "rms_norm_silu", ROUNDS)
    with device_of(x):
        rms_norm_silu_kernel[(B * plan.tiles,)](
            aligned(x), weight, scale, shift, y, C, S, plan.tiles, eps, most, row_stride(scale), row_stride(shift),
            SILU=silu, LAST=last, WIDTH=plan.WIDTH, PART=plan.PART, SPAN=plan.SPAN, ROUNDS=plan.ROUNDS,
            CHUNKS=plan.CHUNKS, FULL=plan.full(C, S), INDEX=index_dtype(C * S), num_warps=plan.num_warps)
