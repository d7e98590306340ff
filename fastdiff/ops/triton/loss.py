"""What the kernels of losses share: a program sums a chunk of a sample; a second kernel adds the chunks up.

Chunks are the tiles of `plan_tiles`: of a sample's shape and its tensors' layouts, never of the batch. draws: whether
the op can draw noise, whose blocks no tile may cut, drawn or not.
"""

import torch
import triton
import triton.language as tl

from .tiles import channels_last, device_of, plan_tiles

CHUNKS = 1024  # that a step of the second kernel reads


@triton.jit
def factor(t, weight, sample_weight, sample, T):
    """weight[t] * sample_weight of a sample, NaN where t is outside [0, T)."""
    step = tl.load(t + sample)
    value = tl.where((step >= 0) & (step < T), 1.0, float("nan"))
    if weight is not None:
        value *= tl.load(weight + step, mask=(step >= 0) & (step < T), other=float("nan"))
    if sample_weight is not None:
        value *= tl.load(sample_weight + sample)
    return value


@triton.jit
def total(value, inside):
    """Of the elements inside, in a fixed order, each lane's own first."""
    counted = tl.where(inside, value, 0.0)
    return tl.sum(tl.reshape(counted, (counted.numel,), can_reorder=True), axis=0)


@triton.jit
def start(x_start, flip, sample, base, c, s, i, C, W, wanted, LAST: tl.constexpr):
    """x0 of the elements wanted: bytes scaled, mirrored where the sample is flipped."""
    mirror = tl.zeros_like(s)
    if flip is not None:
        mirror = tl.where(tl.load(flip + sample) != 0, W - 1 - 2 * (s % W), mirror)
    offset = (s + mirror) * C + c if LAST else i + mirror
    value = tl.load(x_start + base + offset, mask=wanted, other=0).to(tl.float32)
    if x_start.dtype.element_ty == tl.uint8:
        value = (2.0 * value - 255.0) * (1 / 255)  # exact before the product: no cancellation near 0
    return value


@triton.jit(do_not_specialize=["T"])
def sum_kernel(partial,                  # [B, chunks]
               t, weight, sample_weight, # [B] int64; [T] or None; [B] or None
               out,                      # [B]
               chunks, T, N, unit, STEP: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, STEP)
    sums = tl.zeros([STEP], tl.float32)
    for first in range(0, chunks, STEP):
        here = first + lane
        sums += tl.load(partial + sample * chunks + here, mask=here < chunks, other=0.0)
    mean = tl.sum(sums, axis=0) / tl.cast(N, tl.float32)
    tl.store(out + sample, mean * (unit * factor(t, weight, sample_weight, sample, T)))


def run_sums(kernel, images, draws, unit, out, t, weight, sample_weight, T, x_start, **arguments):
    """out [B] = unit * weights * the mean of what `kernel` sums; images: whose layouts matter, by their flag's name."""
    B, count = x_start.shape[0], x_start[:1].numel()
    if B == 0:
        return
    if count == 0:
        out.fill_(float("nan"))
        return
    tiles, options = arrange(images, draws, x_start, arguments)
    chunks = tiles.arguments["tiles"]
    partial = torch.empty((B, chunks), dtype=torch.float32, device=x_start.device)
    with device_of(x_start):
        kernel[tiles.grid](t=t, partial=partial, T=T, x_start=x_start, **arguments, **options, **tiles.arguments)
        sum_kernel[(B,)](partial, t, weight, sample_weight, out, chunks, T, count, unit,
                         STEP=min(CHUNKS, triton.next_power_of_2(chunks)))


def run_gradient(kernel, images, draws, x_start, lanes=1, **arguments):
    """lanes: of plan_tiles."""
    if x_start.numel() == 0:
        return
    tiles, options = arrange(images, draws, x_start, arguments, lanes)
    with device_of(x_start):
        kernel[tiles.grid](x_start=x_start, **arguments, **options, **tiles.arguments)


def arrange(images, draws, x_start, arguments, lanes=1):
    """Tiles, and what else both kernels are told."""
    layouts = {name: channels_last(image) for name, image in images.items()}
    learned = arguments["model_output"].shape[1] != x_start.shape[1]
    W = x_start.shape[-1] if x_start.dim() > 2 else 1
    return plan_tiles(x_start, any(layouts.values()), draws, lanes=lanes), layouts | dict(LEARNED=learned, W=W)
