"""How programs cover [B, C, S] images: each takes one tile of one sample, in whatever layouts its tensors have."""

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import blocks

MAX_ROWS = 16    # channels per program where one tensor is channels_last
FLAT, TILED, PACKED, SCATTERED = (tl.constexpr(order) for order in range(4))  # of a program's elements: plan_tiles


class Tiles(NamedTuple):
    """A grid and the arguments, by name, of every kernel that calls `locate`."""

    grid: tuple[int]
    arguments: dict


def channels_last(tensor):
    """Whether a dense [B, C, *] tensor (or None) must be addressed as NHWC."""
    return tensor is not None and not tensor.is_contiguous()


def power_of_two(n):
    return triton.next_power_of_2(max(n, 1))


def index_dtype(elements):
    """Integer type for offsets inside one sample; samples themselves are always reached with 64 bits."""
    return tl.int32 if elements < 2**31 else tl.int64


def device_of(tensor):
    """Makes the tensor's GPU current; the interpreter's CPU tensors need nothing."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def plan_tiles(image, any_channels_last, draws, scattered=False, lanes=1):
    """Tiles for a [B, C, *] image.

    Flat: a run of the logical index, contiguous in channels_first. Otherwise [channels, positions], so that both
    layouts are read in whole sectors; a Philox block must not straddle two channels then. Packed: few channels that are
    no power of two, of several stretches of positions after each other, so that no row is without a channel.
    scattered: a run of the memory's order, channels last; Philox blocks as in a tile of the same elements.
    lanes: 1/2 where little is done with an element, so that a lane has twice as many; 2 where much is.
    """
    B, C = image.shape[:2]
    S = image[0, 0].numel()
    tiled = any_channels_last and (S % 4 == 0 or not draws)
    packed = tiled and C < MAX_ROWS and power_of_two(C) != C
    order = SCATTERED if scattered else PACKED if packed else TILED if tiled else FLAT
    sizes = blocks.row("image", C * S, image)
    rows = MAX_ROWS if packed else min(power_of_two(C), MAX_ROWS) if tiled or scattered else 1
    columns = max(4, min(power_of_two(C * S if order is FLAT else S), sizes.block // rows))
    stretches = triton.cdiv(C * S if order is FLAT else S, columns)
    lines = {FLAT: 1, SCATTERED: 1, TILED: triton.cdiv(C, rows), PACKED: C}[order]   # of rows, or their channels
    tiles = triton.cdiv(lines * stretches, rows) if packed else lines * stretches
    full = tiles * rows * columns == C * S
    return Tiles((B * tiles,), dict(C=C, S=S, N=C * S, tiles=tiles, ORDER=order.value, FULL=full, ROWS=rows,
                                    COLUMNS=columns, INDEX=index_dtype(2 * C * S),
                                    num_warps=sizes.warps(int(rows * columns * lanes))))


def can_scatter(image, draws):
    """Whether plan_tiles can scatter an image."""
    C, S = image.shape[1], image[0, 0].numel()
    return C <= MAX_ROWS and power_of_two(C) == C and (S % 4 == 0 or not draws)


@triton.jit
def locate(C, S, N, tiles, ORDER: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
           INDEX: tl.constexpr):
    """This program's sample (int64); channel, position, index and validity of its [ROWS, COLUMNS] elements, scattered
    [1, ROWS * COLUMNS]; and their Philox blocks [ROWS, COLUMNS / 4]. The index is logical, scattered that of memory."""
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    tile = (program % tiles).to(INDEX)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    block = tl.arange(0, COLUMNS // 4)[None, :]
    if ORDER == FLAT:
        i = tile * COLUMNS + row + column
        c = i // S
        s = i % S
        inside = i < N
        block = tile * (COLUMNS // 4) + row + block
    elif ORDER == SCATTERED:
        i = tile * (ROWS * COLUMNS) + tl.arange(0, ROWS * COLUMNS)[None, :]
        c = i % ROWS
        s = i // ROWS
        inside = i < N
        block = row * (S // 4) + tile * (COLUMNS // 4) + block
    else:
        stretches = tl.cdiv(S, COLUMNS)
        if ORDER == PACKED:
            stretch = (tile * ROWS + row) // C
            c = (tile * ROWS + row) % C
            inside = stretch < stretches
        else:
            stretch = tile % stretches
            c = tile // stretches * ROWS + row
            inside = c < C
        s = stretch * COLUMNS + column
        i = c * S + s
        inside = inside & (s < S)
        block = c * (S // 4) + stretch * (COLUMNS // 4) + block
    if FULL:
        inside = tl.full(inside.shape, True, tl.int1)
    return sample, c, s, i, inside, block


@triton.jit
def offsets(c, s, i, C, LAST: tl.constexpr):
    """Of the elements within their sample, in an image of C channels; i is the logical index there."""
    if LAST:
        return s * C + c
    else:
        return i


@triton.jit
def read(pointer, offset, wanted):
    """Elements as float32, 0 where not wanted (and not touched)."""
    return tl.load(pointer + offset, mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def write(pointer, offset, value, wanted):
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=wanted)
