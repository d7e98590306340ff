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
    packed = _winograd.filters(weight, tile, _pack, native.simd_level())
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


def conv3x3_backward(grad_y, x, weight, grad_x, grad_weight):
    """Fills what is not None, by Winograd's algorithm where that is the quicker."""
    B, C, H, W = x.shape
    of_x, of_weight = _winograd.choose_gradients(B, C, weight.shape[0], H, W)
    rest = None if of_x else grad_x, None if of_weight else grad_weight
    if any(value is not None for value in rest):
        _direct_backward(grad_y, x, weight, *rest)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    if grad_x is not None and of_x:
        _into(grad_x, grad_x.dtype, lambda out: _convolve_back(grad_y, weight, of_x, out))
    if grad_weight is not None and of_weight:
        inputs = x.contiguous(memory_format=torch.channels_last)
        _into(grad_weight, torch.float32, lambda out: _correlate(grad_y, inputs, out))


def _direct_backward(grad_y, x, weight, grad_x, grad_weight):
    """By torch's convolution, in float32."""
    mask = [grad_x is not None, grad_weight is not None, False]
    found = torch.ops.aten.convolution_backward(
        grad_y.float(), x.float(), weight.float(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    for gradient, value in zip((grad_x, grad_weight), found[:2], strict=True):
        if gradient is not None:
            gradient.copy_(value)


def _convolve_back(grad_y, weight, tile, out):
    """grad_y's convolution with the mirrored filters."""
    packed = _winograd.packed(weight, tile, _pack, back=True)
    nothing = 0, None, None, 0.0, None, None, False
    return native._C.conv3x3(torch.get_num_threads(), grad_y, packed, tile, None, None, None, *nothing, out)


def _correlate(grad_y, x, out):
    return native._C.conv3x3_backward(torch.get_num_threads(), grad_y, x, out)


def _into(gradient, dtype, fill):
    """fill(out) for a channels-last out of this dtype: the gradient, or what is copied to it."""
    ready = gradient.is_contiguous(memory_format=torch.channels_last) and gradient.dtype is dtype
    out = gradient if ready else torch.empty_like(gradient, dtype=dtype, memory_format=torch.channels_last)
    status = fill(out)
    if status:
        native._raise(status)
    if out is not gradient:
        gradient.copy_(out)


def _pack(weight, packed, tile, back):
    native._C.conv3x3_pack(torch.get_num_threads(), weight, packed, tile, back)


def _float(value):
    """A vector as contiguous float32; or None."""
    if value is None or (value.dtype is torch.float32 and value.is_contiguous()):
        return value
    return value.float().contiguous()


def _rows(value):
    """[B, *] in float32 with unit stride along its last axis."""
    if value is None:
        return None
    value = value.float()
    return value if value.stride(-1) == 1 else value.contiguous()
