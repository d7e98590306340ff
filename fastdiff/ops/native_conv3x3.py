"""`conv3x3` on the CPU: Winograd's algorithm where it is the quicker, else torch's convolution."""

import torch
import torch.nn.functional as F

from . import _layout, _winograd, native


def conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y):
    B, C, H, W = x.shape
    tile = _winograd.choose(B, C, weight.shape[0], H, W)
    if not tile:
        return _direct(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y)
    inputs = x.contiguous(memory_format=torch.channels_last)
    out = y
    if not y.is_contiguous(memory_format=torch.channels_last):
        out = torch.empty_like(y, memory_format=torch.channels_last)
    packed = _winograd.filters(weight, tile, _pack)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    status = native._C.conv3x3(
        torch.get_num_threads(), inputs, packed, tile, _float(bias), _rows(add), residual, groups,
        _float(norm_weight), _float(norm_bias), eps, _rows(scale), _rows(shift), silu, out,
    )  # fmt: skip
    if status:
        native._raise(status)
    if out is not y:
        y.copy_(out)


def _direct(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y):
    """The parts one after the other, in float32: this module's GroupNorm, torch's convolution."""
    h = _layout.dense(x).float()
    if groups:
        raw, h = h, torch.empty_like(h)
        affine = _float(norm_weight), _float(norm_bias)
        native.group_norm_silu(raw, *affine, groups, eps, None, _rows(scale), _rows(shift), silu, h, None, None)
    value = F.conv2d(h, weight.float(), None if bias is None else bias.float(), padding=1)
    if add is not None:
        value = value + add[:, :, None, None]
    y.copy_(value if residual is None else value + residual)


def _pack(weight, packed, tile):
    native._C.conv3x3_pack(torch.get_num_threads(), weight, packed, tile)


def _float(value):
    return value if value is None else value.float().contiguous()


def _rows(value):
    """[B, *] in float32 with unit stride along its last axis."""
    if value is None:
        return None
    value = value.float()
    return value if value.stride(-1) == 1 else value.contiguous()
