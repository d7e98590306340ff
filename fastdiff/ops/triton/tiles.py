"""How programs cover [B, C, S] images: each takes one tile of one sample, in whatever layouts its tensors have."""

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import blocks

MAX_ROWS = 16    # channels per program where one tensor is channels_last


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


def plan_tiles(image, any_channels_last, draws):
    """Tiles for a [B, C, *] image.

    Flat: a run of the logical index, contiguous in channels_first. Otherwise [channels, positions], so that both
    layouts are read in whole sectors; a Philox block must not straddle two channels then.
    """
    B, C = image.shape[:2]
    S = image[0, 0].numel()
    tiled = any_channels_last and (S % 4 == 0 or not draws)
    sizes = blocks.row("image", C * S, image)
    rows = min(power_of_two(C), MAX_ROWS) if tiled else 1
    columns = max(4, min(power_of_two(S if tiled else C * S), sizes.block // rows))
    tiles = triton.cdiv(C, rows) * triton.cdiv(S, columns) if tiled else triton.cdiv(C * S, columns)
    return Tiles((B * tiles,), dict(C=C, S=S, N=C * S, tiles=tiles, TILED=tiled, ROWS=rows, COLUMNS=columns,
                                    INDEX=index_dtype(2 * C * S), num_warps=sizes.warps(rows * columns)))


@triton.jit
def locate(C, S, N, tiles, TILED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """This program's sample (int64); channel, position, logical index and validity of its [ROWS, COLUMNS] elements;
    and their Philox blocks [ROWS, COLUMNS / 4]."""
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    tile = (program % tiles).to(INDEX)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    block = tl.arange(0, COLUMNS // 4)[None, :]
    if TILED:
        column_tiles = tl.cdiv(S, COLUMNS)
        c = tile // column_tiles * ROWS + row
        s = tile % column_tiles * COLUMNS + column
        i = c * S + s
        inside = (c < C) & (s < S)
        block = c * (S // 4) + tile % column_tiles * (COLUMNS // 4) + block
    else:
        i = tile * COLUMNS + row + column
        c = i // S
        s = i % S
        inside = i < N
        block = tile * (COLUMNS // 4) + row + block
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
