"""Convolutions of any square kernel, and linear layers, each as one matrix product: on the CPU, without gradients.

Whether they are quicker so than by torch, and whether anybody differentiates or traces, is for the caller to know:
`fastdiff.models.fused` does.
"""

import torch

from . import _layout, _winograd, native
from .native_conv3x3 import _float

COLUMNS = _winograd.COLUMNS


def convolution(x, weight, bias=None, residual=None, *, stride=1, padding=0):
    """y = W * x + bias + residual, W * x the convolution with a frame of `padding` zeros, every stride-th output kept.

    x [B, C, H, W] float32, bfloat16 or float16; weight [O, C, k, k] and bias [O] float32 or x's dtype; residual [B, O,
    H', W'] of x's dtype, H' = (H + 2 padding - k) // stride + 1. Returns y like residual, channels last. Arithmetic is
    float32, rounded once: each output is one sum. The weight is kept as the product reads it, in float32, until it
    changes, as `conv3x3` keeps its filters; at the SIMD level avx512bf16, where x and weight are bfloat16, in that.
    """
    B, _, H, W = x.shape
    O, _, kernel, _ = weight.shape  # noqa: E741
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (H, W)]
    y = _layout.empty((B, O, *size), True, x.dtype, x.device)
    if residual is not None:
        residual = _layout.in_layout(residual, True)
    status = native._C.convolution(
        torch.get_num_threads(), _layout.in_layout(x, True), _filters(weight, x), kernel, stride, padding, _float(bias),
        residual, y,
    )  # fmt: skip
    if status:
        native._raise(status)
    return y


def linear(x, weight, bias=None, residual=None):
    """y = x W^T + bias + residual: x [..., C], weight [O, C], bias [O], residual and y [..., O]; else as above."""
    y = torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)
    x, residual = x.contiguous(), _layout.vector(residual)
    status = native._C.linear(torch.get_num_threads(), x, _filters(weight, x), _float(bias), residual, y)
    if status:
        native._raise(status)
    return y


def _filters(weight, x):
    """weight [O, C, ...] as panels, of float32 or of what x and it have in common, where the level multiplies that."""
    level = native.simd_level()
    pairs = level == "avx512bf16" and x.dtype is torch.bfloat16 and weight.dtype is torch.bfloat16
    dtype = torch.bfloat16 if pairs else torch.float32
    return _winograd.kept(weight, dtype, level, lambda: _packed(weight, dtype))


def _packed(weight, dtype):
    O, C = weight.shape[:2]  # noqa: E741
    with torch.inference_mode(False), torch.no_grad():
        image = weight.detach().float()
        image = _layout.dense(image if image.dim() == 4 else image[:, :, None, None])
        terms = C * image.shape[2] * image.shape[3]
        terms += terms % 2 if dtype is torch.bfloat16 else 0
        result = image.new_empty(-(-O // COLUMNS) * COLUMNS * terms, dtype=dtype)
        native._C.convolution_pack(torch.get_num_threads(), image, result)
    return result
