"""Contract of `conv3x3`: a 3x3 convolution with what stands before and after it in a residual block."""

import math

import torch

from . import _check, _dispatch, _layout

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? residual, int groups, Tensor? norm_weight,"
    " Tensor? norm_bias, float eps, Tensor? scale, Tensor? shift, bool silu, str backend) -> Tensor"
)


def conv3x3(
    x,
    weight,
    bias=None,
    *,
    add=None,
    residual=None,
    groups=None,
    norm_weight=None,
    norm_bias=None,
    eps=1e-5,
    scale=None,
    shift=None,
    silu=True,
):
    """y = W * h + bias + add + residual, W * h the 3x3 convolution of stride 1 and zero padding 1, for inference.

    h = act(GN(x) * norm_weight + norm_bias) * (1 + scale) + shift) as `group_norm_silu` has it where groups is given,
    else x. On the CPU h is made as it is read and never written; channels last is the quick layout, and the
    multiplications are Winograd's: F(4x4, 3x3), or F(2x2, 3x3) where maps are small, else torch's own convolution, by
    `fastdiff.ops._winograd.choose`. The filters' transform, 1.8 or 4 times their size, is made at the first call and
    kept until the weight changes (as its version counter tells; a write through .data does not count) or goes.

    Args:
        x: [B, C, H, W], any floating dtype, any strides; y has x's layout where x is dense, else it is contiguous.
        weight: [O, C, 3, 3]; bias: [O]; both float32 or x's dtype.
        add: [B, O], floating, any strides: a time embedding.
        residual: [B, O, H, W] of x's dtype, any strides.
        groups: int that divides C, or None: no GroupNorm, and nothing of what follows.
        norm_weight, norm_bias: [C], float32 or x's dtype; scale, shift: [B, C], floating.
        eps, silu: as in `group_norm_silu`.

    Returns y [B, O, H, W] in x's dtype; arithmetic is float32 (float64 for float64), rounded once. Up to 512
    channels its error is at most 1e-5 of y's maximum, 2e-6 with small tiles (a direct convolution's: 0.3e-6 to 4e-6).
    Not differentiable. Raises ValueError, TypeError or RuntimeError that names the argument.
    Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
    """
    _check_conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift)
    tensors = x, weight, bias, add, residual, norm_weight, norm_bias, scale, shift
    if _check.differentiating():
        names = ("x", "weight", "bias", "add", "residual", "norm_weight", "norm_bias", "scale", "shift")
        _check.no_gradient("conv3x3", **dict(zip(names, tensors, strict=True)))
    call = _conv3x3 if _dispatch.eager(*tensors) else torch.ops.fastdiff.conv3x3
    backend = _dispatch.requested()
    return call(x, weight, bias, add, residual, groups or 0, norm_weight, norm_bias, eps, scale, shift, silu, backend)


def _check_conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift):
    shape, dtype, device = _check.image("x", x)
    if len(shape) != 4:
        raise ValueError(f"x must have shape [B, C, H, W], got {list(shape)}")
    B, C, H, W = shape
    _check.is_tensor("weight", weight)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (C, 3, 3):
        raise ValueError(f"weight must have shape [O, {C}, 3, 3], got {list(weight.shape)}")
    O = weight.shape[0]  # noqa: E741
    _parameter("weight", weight, weight.shape, dtype, device)
    if bias is not None:
        _parameter("bias", bias, (O,), dtype, device)
    if add is not None:
        _check.floating("add", add, (B, O), device)
    if residual is not None:
        _check.tensors(device, "residual", residual, (B, O, H, W), dtype)
    prologue = {"norm_weight": norm_weight, "norm_bias": norm_bias, "scale": scale, "shift": shift}
    if groups is None:
        given = next((name for name, value in prologue.items() if value is not None), None)
        if given:
            raise ValueError(f"{given} must be None where groups is None, got a tensor")
        return
    if type(groups) is not int or groups < 1 or C % groups:
        raise ValueError(f"groups must be a positive int that divides C = {C}, or None, got {groups}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    for name, value in prologue.items():
        if value is not None and name.startswith("norm"):
            _parameter(name, value, (C,), dtype, device)
        elif value is not None:
            _check.floating(name, value, (B, C), device)


def _parameter(name, value, shape, dtype, device):
    """A tensor of this shape, float32 or x's dtype."""
    _check.is_tensor(name, value)
    if value.dtype is not torch.float32 and value.dtype is not dtype:
        raise ValueError(f"{name} must be float32 or x's {dtype}, got {value.dtype}")
    _check.tensors(device, name, value, shape, value.dtype)


def _output(x, weight):
    """Where y goes: x's layout where x is dense, else contiguous."""
    B, _, H, W = x.shape
    last = not x.is_contiguous() and _layout.is_channels_last(x)
    return _layout.empty((B, weight.shape[0], H, W), last, x.dtype, x.device)


def _conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, backend):
    y = _output(x, weight)
    function = _dispatch.function("conv3x3", backend, x)
    if y.numel():
        function(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y)
    return y


def _fake(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, backend):
    return _output(x, weight)


_LIBRARY.impl("conv3x3", _conv3x3, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::conv3x3", _fake, lib=_LIBRARY)
