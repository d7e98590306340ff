"""GroupNorm, an add before it, a scale-shift after it, SiLU, dropout and a residual, forward, in Triton.

A group that fits on chip is one program's tile: read once. A larger one is cut into chunks, a fixed partition: the
chunks' statistics are merged, then every chunk is read again. Statistics are two-pass within a tile and Chan's between
tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import blocks
from .philox import words
from .tiles import channels_last, device_of, index_dtype, power_of_two

MAX_WIDTH = 128    # channels of a chunk
SECTOR = 32        # bytes: what one row of a channels_last tile should at least cover
MERGE = 1024       # partial results merged at a time
MINUS_LOG2E = tl.constexpr(-1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Groups(NamedTuple):
    """How a [B, C, S] image of G groups is cut into tiles [GROUPS * WIDTH channels, SPAN positions]."""

    GROUPS: int    # groups in a tile
    WIDTH: int     # channels of each, a power of two
    SPAN: int      # positions, a power of two
    group_tiles: int
    chunks: int    # of a group
    position_chunks: int
    num_warps: int

    @property
    def whole(self):
        return self.chunks == 1

    def full(self, G, D, S):
        """Whether all elements of all tiles exist."""
        return G % self.GROUPS == 0 and D % self.WIDTH == 0 and S % self.SPAN == 0


def plan_groups(x, G, last, kind="group_norm_silu", most=blocks.ANY):
    """Tiles for x's G groups: of nothing but its shape, layout and element size, and the table of blocks.

    most: elements of a tile of whole groups.
    """
    S, D, itemsize = x[0, 0].numel(), x.shape[1] // G, x.element_size()
    width, span = power_of_two(D), power_of_two(S)
    per_sector = max(1, SECTOR // (width * itemsize)) if last else max(1, 256 // (width * span))
    groups = min(power_of_two(G), per_sector)
    elements = groups * width * span
    sizes = blocks.row(kind, elements if elements <= most else blocks.ANY, x)
    if sizes.block != blocks.WHOLE:
        groups = groups if last else 1
        width = min(width, MAX_WIDTH)
        if last:
            span = min(span, max(1, sizes.block // (groups * width)))
        else:
            span = min(span, sizes.block)
            width = min(width, sizes.block // span)
    position_chunks = triton.cdiv(S, span)
    chunks = triton.cdiv(D, width) * position_chunks
    plan = Groups(groups, width, span, triton.cdiv(G, groups), chunks, position_chunks, 0)
    return plan._replace(num_warps=sizes.warps(groups * width * span, plan.full(G, D, S)))


def merge_warps(elements):
    """Of a kernel that merges so many partial results at a time."""
    return min(4, max(1, elements // 256))


@triton.jit
def locate_groups(S, G, group_tiles, chunks, position_chunks, D: tl.constexpr, GROUPS: tl.constexpr,
                  WIDTH: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr):
    """This program's sample (int64), chunk, groups [GROUPS]; channels, positions and validity of its tile."""
    program = tl.program_id(0)
    chunk = program % chunks
    tile = program // chunks
    sample = (tile // group_tiles).to(tl.int64)
    first_group = tile % group_tiles * GROUPS
    lane = tl.arange(0, GROUPS * WIDTH)
    within = chunk // position_chunks * WIDTH + lane % WIDTH
    group = first_group + lane // WIDTH
    c = group * D + within
    s = chunk % position_chunks * SPAN + tl.arange(0, SPAN)
    if FULL:
        real = tl.full((GROUPS * WIDTH,), 1, tl.int1)
        inside = tl.full((GROUPS * WIDTH, SPAN), 1, tl.int1)
    else:
        real = (within < D) & (group < G)
        inside = real[:, None] & (s < S)[None, :]
    return sample, chunk, first_group + tl.arange(0, GROUPS), c, real, s, inside


@triton.jit
def tile_offsets(sample, c, s, C, S, LAST: tl.constexpr, INDEX: tl.constexpr):
    """Of the tile's elements: one 64-bit base and offsets [channels, positions] within the sample."""
    c = c.to(INDEX)
    s = s.to(INDEX)
    offset = s[None, :] * C + c[:, None] if LAST else c[:, None] * S + s[None, :]
    return sample * C * S, offset


@triton.jit
def channel_values(pointer, offset, real, default: tl.constexpr):
    """Per-channel values as float32, or the default where the tensor is absent."""
    if pointer is None:
        return tl.full(real.shape, default, tl.float32)
    else:
        return tl.load(pointer + offset, mask=real, other=default).to(tl.float32)


@triton.jit
def modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real):
    """weight * (1 + scale) and bias * (1 + scale) + shift: the affine map of n, per channel."""
    gain = 1.0 + channel_values(scale, sample * scale_stride + c, real, 0.0)
    offset = channel_values(shift, sample * shift_stride + c, real, 0.0)
    return (channel_values(weight, c, real, 1.0) * gain,
            tl.fma(channel_values(bias, c, real, 0.0), gain, offset))


@triton.jit
def group_sums(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """[channels] or [channels, positions] to [GROUPS]."""
    return tl.sum(tl.reshape(values, (GROUPS, values.numel // GROUPS)), axis=1)


@triton.jit
def to_channels(values, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """[GROUPS] to [GROUPS * WIDTH]."""
    return tl.reshape(tl.broadcast_to(values[:, None], (GROUPS, WIDTH)), (GROUPS * WIDTH,))


@triton.jit
def tile_statistics(x, inside, count, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Two-pass: a first mean [GROUPS], x less it, the mean of that (the first one's rounding), the sum of squares."""
    first = tl.div_rn(group_sums(tl.where(inside, x, 0.0), GROUPS, WIDTH), count)
    centred = tl.where(inside, x - to_channels(first, GROUPS, WIDTH)[:, None], 0.0)
    drift = tl.div_rn(group_sums(centred, GROUPS, WIDTH), count)
    squares = group_sums(centred * centred, GROUPS, WIDTH)
    squares = tl.fma(-count * drift, drift, squares)
    return first, centred, drift, tl.maximum(squares, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reciprocal_deviation(squares, count, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, count) + eps))


@triton.jit
def exponent(a, SILU: tl.constexpr):
    """What makes z = -h log2(e) of h = n * a + b where there is an activation: a factor of both terms."""
    return a * MINUS_LOG2E if SILU else a


@triton.jit
def activate(z, SILU: tl.constexpr):
    """h / (1 + e^-h) of z = -h log2(e)."""
    return z / tl.fma(tl.exp2(z), MINUS_LOG2E, MINUS_LOG2E) if SILU else z


@triton.jit
def apply_map(n, a, b, SILU: tl.constexpr):
    """act(n * a + b) of [channels, positions], a and b of channels."""
    return activate(tl.fma(n, exponent(a, SILU)[:, None], exponent(b, SILU)[:, None]), SILU)


@triton.jit
def slope(z):
    """Its derivative g (1 + h (1 - g)), g = 1 / (1 + e^-h)."""
    g = 1.0 / (1.0 + tl.exp2(z))
    return g * tl.fma(z, tl.fma(g, LN2, -LN2), 1.0)


@triton.jit
def kept(rng, sample_ids, sample, threshold, stream_id, c, start, S, SPAN: tl.constexpr, BLOCKS: tl.constexpr,
         INDEX: tl.constexpr):
    """Which elements [channels, SPAN] from position `start` on dropout keeps. BLOCKS: no Philox block is of two
    channels."""
    c = c.to(INDEX)[:, None]
    if BLOCKS:
        block = c * (S // 4) + start // 4 + tl.arange(0, SPAN // 4)[None, :]
        w0, w1, w2, w3 = words(rng, sample_ids, sample, stream_id, block)
        word = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (c.shape[0], SPAN))
    else:
        i = c * S + start + tl.arange(0, SPAN)[None, :]
        w0, w1, w2, w3 = words(rng, sample_ids, sample, stream_id, i // 4)
        word = tl.where(i % 4 < 2, tl.where(i % 4 == 0, w0, w1), tl.where(i % 4 == 2, w2, w3))
    return word >= tl.cast(threshold, tl.uint32)


@triton.jit
def finish(h, residual, inside, rng, sample_ids, sample, threshold, factor, stream_id, c, start, S,
           SPAN: tl.constexpr, BLOCKS: tl.constexpr, INDEX: tl.constexpr):
    """Dropout and the residual, where there are such."""
    if rng is not None:
        keep = kept(rng, sample_ids, sample, threshold, stream_id, c, start, S, SPAN, BLOCKS, INDEX)
        h = tl.where(keep, h * factor, 0.0)
    if residual is not None:
        h += tl.load(residual, mask=inside, other=0.0).to(tl.float32)
    return h


UNALIGNED = ["weight", "bias", "add", "scale", "shift", "rng", "sample_ids"]
UNSPECIALIZED = ["add_stride", "scale_stride", "shift_stride", "threshold", "stream_id"]


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def whole_groups_kernel(x,                           # [B, C, S]
                        weight, bias,                # [C] or None
                        add, scale, shift,           # [B, C] with unit channel stride, or None
                        y,                           # [B, C, S]
                        mean, rstd,                  # [B, G] float32
                        residual, rng, sample_ids,   # [B, C, S], [2] and [B] int64, or None
                        C, S, G, group_tiles, count, eps, add_stride, scale_stride, shift_stride, threshold, factor,
                        stream_id, SILU: tl.constexpr, LAST: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr,
                        WIDTH: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr, BLOCKS: tl.constexpr,
                        INDEX: tl.constexpr):
    sample, _, group, c, real, s, inside = locate_groups(S, G, group_tiles, 1, 1, D, GROUPS, WIDTH, SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    values = tl.load(x + base + offset, mask=inside, other=0.0).to(tl.float32)
    if add is not None:
        values += channel_values(add, sample * add_stride + c, real, 0.0)[:, None]
    first, centred, drift, squares = tile_statistics(values, inside, count, GROUPS, WIDTH)
    deviation = reciprocal_deviation(squares, count, eps)
    tl.store(mean + sample * G + group, first + drift, mask=group < G)
    tl.store(rstd + sample * G + group, deviation, mask=group < G)

    a, b = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    a *= to_channels(deviation, GROUPS, WIDTH)
    h = apply_map(centred, a, tl.fma(-to_channels(drift, GROUPS, WIDTH), a, b), SILU)
    at = None if residual is None else residual + base + offset
    h = finish(h, at, inside, rng, sample_ids, sample, threshold, factor, stream_id, c, 0, S, SPAN, BLOCKS, INDEX)
    tl.store(y + base + offset, h.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def chunk_statistics_kernel(x, add,         # [B, C, S]; [B, C] or None
                            partial,        # [B, G, chunks, 2]: mean, sum of squares
                            C, S, G, group_tiles, chunks, position_chunks, add_stride,
                            LAST: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
                            SPAN: tl.constexpr, FULL: tl.constexpr, INDEX: tl.constexpr):
    sample, chunk, group, c, real, s, inside = locate_groups(S, G, group_tiles, chunks, position_chunks, D, GROUPS,
                                                             WIDTH, SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    values = tl.load(x + base + offset, mask=inside, other=0.0).to(tl.float32)
    if add is not None:
        values += channel_values(add, sample * add_stride + c, real, 0.0)[:, None]
    count = chunk_count(chunk, position_chunks, S, D, WIDTH, SPAN).to(tl.float32)
    first, _, drift, squares = tile_statistics(values, inside, count, GROUPS, WIDTH)
    result = partial + ((sample * G + group) * chunks + chunk) * 2
    tl.store(result, first + drift, mask=group < G)
    tl.store(result + 1, squares, mask=group < G)


@triton.jit
def chunk_count(chunk, position_chunks, S, D: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr):
    """Elements of one group in a chunk; negative or 0 past the last chunk."""
    return (tl.minimum(D - chunk // position_chunks * WIDTH, WIDTH) *
            tl.minimum(S - chunk % position_chunks * SPAN, SPAN))


@triton.jit
def merge_statistics_kernel(partial,        # [B, G, chunks, 2]
                            mean, rstd,     # [B, G]
                            S, chunks, position_chunks, count, eps,
                            D: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Chan's formula, means taken relative to the first chunk's."""
    group = tl.program_id(0).to(tl.int64)
    partial += group * chunks * 2
    reference = tl.load(partial)
    distance = tl.zeros((), tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        weight = chunk_count(chunk, position_chunks, S, D, WIDTH, SPAN).to(tl.float32)
        part = tl.load(partial + chunk * 2, mask=chunk < chunks, other=0.0) - reference
        distance += tl.sum(tl.where(chunk < chunks, weight * part, 0.0), axis=0)
    distance = tl.div_rn(distance, count)
    squares = tl.zeros((), tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        weight = chunk_count(chunk, position_chunks, S, D, WIDTH, SPAN).to(tl.float32)
        part = tl.load(partial + chunk * 2, mask=chunk < chunks, other=0.0) - reference - distance
        within = tl.load(partial + chunk * 2 + 1, mask=chunk < chunks, other=0.0)
        squares += tl.sum(tl.where(chunk < chunks, tl.fma(weight * part, part, within), 0.0), axis=0)
    tl.store(mean + group, reference + distance)
    tl.store(rstd + group, reciprocal_deviation(squares, count, eps))


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNALIGNED)
def apply_kernel(x, weight, bias, add, scale, shift, y, mean, rstd, residual, rng, sample_ids,  # as above
                 C, S, G, group_tiles, chunks, position_chunks, add_stride, scale_stride, shift_stride, threshold,
                 factor, stream_id, SILU: tl.constexpr, LAST: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr,
                 WIDTH: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr, BLOCKS: tl.constexpr,
                 INDEX: tl.constexpr):
    sample, chunk, _, c, real, s, inside = locate_groups(S, G, group_tiles, chunks, position_chunks, D, GROUPS, WIDTH,
                                                         SPAN, FULL)
    base, offset = tile_offsets(sample, c, s, C, S, LAST, INDEX)
    centred, deviation = centred_tile(x + base + offset, inside, add, sample * add_stride + c, mean + sample * G,
                                      rstd + sample * G, c, real, D)
    a, b = modulation(weight, bias, scale, shift, sample, scale_stride, shift_stride, c, real)
    h = apply_map(centred, a * deviation, b, SILU)
    at = None if residual is None else residual + base + offset
    h = finish(h, at, inside, rng, sample_ids, sample, threshold, factor, stream_id, c, chunk % position_chunks * SPAN,
               S, SPAN, BLOCKS, INDEX)
    tl.store(y + base + offset, h.to(y.dtype.element_ty), mask=inside)


@triton.jit
def centred_tile(x, inside, add, add_offset, mean, rstd, c, real, D: tl.constexpr):
    """x + add - mean of a tile, given the statistics, and the reciprocal deviation of its channels."""
    values = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if add is not None:
        values += channel_values(add, add_offset, real, 0.0)[:, None]
    centre = tl.load(mean + c // D, mask=real, other=0.0)
    return values - centre[:, None], tl.load(rstd + c // D, mask=real, other=0.0)


@triton.jit
def normalized(x, inside, add, add_offset, mean, rstd, c, real, D: tl.constexpr):
    """(x + add - mean) * rstd of a tile; 0 outside."""
    centred, deviation = centred_tile(x, inside, add, add_offset, mean, rstd, c, real, D)
    return tl.where(inside, centred * deviation[:, None], 0.0)


def aligned(x):
    """x, copied where its address would change how a tile is spread over threads, and so the order of a sum."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def row_stride(tensor):
    return 0 if tensor is None else tensor.stride(0)


def blocks_are_whole(rng, S, span):
    """Whether there are Philox blocks and none is of two channels, or of two tiles."""
    return rng is not None and S % 4 == 0 and span >= 4


def group_norm_silu(x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd, residual=None, rng=None,
                    sample_ids=None, threshold=0, factor=1.0, stream=0):
    """Fills y [B, C, *] and, where they are wanted, mean and rstd [B, G], float32, of x + add."""
    if x.numel() == 0:
        return
    B, C = x.shape[:2]
    if mean is None:
        mean, rstd = torch.empty((2, B, groups), dtype=torch.float32, device=x.device)
    S, D = x[0, 0].numel(), C // groups
    last, count = channels_last(x), float(D * S)
    plan = plan_groups(x, groups, last)
    shape = dict(C=C, S=S, G=groups, group_tiles=plan.group_tiles, LAST=last, D=D, GROUPS=plan.GROUPS, WIDTH=plan.WIDTH,
                 SPAN=plan.SPAN, FULL=plan.full(groups, D, S), INDEX=index_dtype(C * S), num_warps=plan.num_warps)
    strides = dict(add_stride=row_stride(add), scale_stride=row_stride(scale), shift_stride=row_stride(shift))
    chunks = dict(chunks=plan.chunks, position_chunks=plan.position_chunks)
    options = dict(residual=residual, rng=rng, sample_ids=sample_ids, threshold=threshold, factor=factor,
                   stream_id=stream, BLOCKS=blocks_are_whole(rng, S, plan.SPAN), SILU=silu)
    grid = (B * plan.group_tiles * plan.chunks,)
    with device_of(x):
        x = aligned(x)
        if plan.whole:
            whole_groups_kernel[grid](x, weight, bias, add, scale, shift, y, mean, rstd, count=count, eps=eps,
                                      **options, **strides, **shape)
            return
        partial = torch.empty((B, groups, plan.chunks, 2), dtype=torch.float32, device=x.device)
        chunk_statistics_kernel[grid](x, add, partial, add_stride=strides["add_stride"], **chunks, **shape)
        block = min(power_of_two(plan.chunks), MERGE)
        merge_statistics_kernel[(B * groups,)](partial, mean, rstd, S, count=count, eps=eps, D=D, WIDTH=plan.WIDTH,
                                               SPAN=plan.SPAN, BLOCK=block, num_warps=merge_warps(block), **chunks)
        apply_kernel[grid](x, weight, bias, add, scale, shift, y, mean, rstd, **options, **strides, **chunks, **shape)
