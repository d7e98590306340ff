"""Contract of `rms_norm_silu` and of its gradient."""

import math

import torch

from . import _autograd, _check, _dispatch, _layout

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "rms_norm_silu(Tensor x, Tensor? weight, Tensor? scale, Tensor? shift, float eps, float floor, bool silu,"
    " str backend) -> Tensor"
)
_LIBRARY.define(
    "rms_norm_silu_backward(Tensor grad_y, Tensor x, Tensor? weight, Tensor? scale, Tensor? shift, float eps,"
    " float floor, bool silu, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def rms_norm_silu(x, weight=None, *, eps=0.0, floor=1e-12, scale=None, shift=None, silu=True):
    """y = act(x / max(sqrt(mean(x^2) + eps), floor / sqrt(C)) * weight * (1 + scale) + shift), act = SiLU or identity.

    The mean is over the channels of each sample and position. With the defaults this is
    F.normalize(x, dim=1) * sqrt(C) * weight, whose norm is at least floor; with eps=1e-6, floor=0 it is
    torch.nn.RMSNorm over the channels.

    Args:
        x: [B, C, *], any floating dtype, any strides; y has x's strides where x is dense, else it is contiguous.
        weight: [C], float32 or x's dtype.
        eps, floor: finite, not negative, not both 0. Where the floor holds, the norm is a constant to the gradient.
        scale, shift: [B, C], floating, any strides.
        silu: h * sigmoid(h) at the end, or nothing.

    Returns y, like x. Arithmetic is float32 (float64 for float64), rounded once. Differentiable once in x, weight,
    scale and shift, each gradient in its input's dtype. Raises ValueError or TypeError that names the argument.
    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019; in a U-Net: lucidrains'
    denoising-diffusion-pytorch from 2.0 on.
    """
    _check_rms_norm_silu(x, weight, eps, floor, scale, shift)
    tensors = x, weight, scale, shift
    backend = _dispatch.requested()
    if not _dispatch.eager(*tensors):
        return torch.ops.fastdiff.rms_norm_silu(*tensors, eps, floor, silu, backend)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        return _RmsNormSilu.apply(*tensors, eps, floor, silu, backend)
    return _rms_norm_silu(*tensors, eps, floor, silu, backend)


def _check_rms_norm_silu(x, weight, eps, floor, scale, shift):
    shape, dtype, device = _check.image("x", x)
    for name, value in (("eps", eps), ("floor", floor)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if eps == 0 and floor == 0:
        raise ValueError("floor must be positive where eps is 0, got 0")
    if weight is not None:
        _check.is_tensor("weight", weight)
        if weight.dtype is not torch.float32 and weight.dtype is not dtype:
            raise ValueError(f"weight must be float32 or x's {dtype}, got {weight.dtype}")
        _check.tensors(device, "weight", weight, (shape[1],), weight.dtype)
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None:
            _check.floating(name, value, shape[:2], device)
    _check.no_tangent("rms_norm_silu", x=x, weight=weight, scale=scale, shift=shift)


def _most(x, floor):
    """The limit of 1 / sqrt(mean(x^2) + eps)."""
    return math.sqrt(x.shape[1]) / floor if floor else math.inf


def _rms_norm_silu(x, weight, scale, shift, eps, floor, silu, backend):
    dense = _layout.dense(x)
    y = torch.empty_like(dense)
    _dispatch.function("rms_norm_silu", backend, x)(
        dense, _layout.vector(weight), eps, _most(x, floor), _layout.rows(scale), _layout.rows(shift), silu, y
    )
    return y if dense is x else _layout.in_strides_of(y, x)


def _gradients(grad_y, x, weight, scale, shift, eps, floor, silu, needs, backend):
    """Of x, weight, scale and shift; None where it is not needed."""
    dense = _layout.dense(x)
    grad_y = grad_y if grad_y.dtype is x.dtype else grad_y.to(x.dtype)
    grad_y = _layout.in_layout(grad_y, _layout.addressed_last(dense))
    gradients = _layout.gradients(dense, (weight, scale, shift), needs)
    _dispatch.function("rms_norm_silu_backward", backend, x)(
        grad_y, dense, _layout.vector(weight), eps, _most(x, floor), _layout.rows(scale), _layout.rows(shift), silu,
        *gradients,
    )  # fmt: skip
    if dense is not x and gradients[0] is not None:
        gradients[0] = _layout.in_strides_of(gradients[0], x)
    return gradients


def _rms_norm_silu_backward(grad_y, x, *arguments):
    """The dispatcher's form: always four tensors."""
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in _gradients(grad_y, x, *arguments))


def _fake(x, *arguments):
    return torch.empty_like(x)


def _fake_backward(grad_y, x, weight, scale, shift, eps, floor, silu, needs, backend):
    gradients = _layout.gradients(x, (weight, scale, shift), needs)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


class _RmsNormSilu(torch.autograd.Function):
    """The eager path's gradient; the dispatcher's is registered below."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, *options):
        ctx.save_for_backward(x, weight, scale, shift)
        ctx.options = options
        return _rms_norm_silu(x, weight, scale, shift, *options)

    @staticmethod
    @_autograd.once
    def backward(ctx, grad_y):
        *options, backend = ctx.options
        return *_gradients(grad_y, *ctx.saved_tensors, *options, ctx.needs_input_grad[:4], backend), *(None,) * 4


def _setup_context(ctx, inputs, output):
    x, weight, scale, shift, *ctx.options = inputs
    ctx.save_for_backward(x, weight, scale, shift)


def _backward(ctx, grad_y):
    *options, backend = ctx.options
    needs = [bool(need) for need in ctx.needs_input_grad[:4]]
    gradients = torch.ops.fastdiff.rms_norm_silu_backward(grad_y, *ctx.saved_tensors, *options, needs, backend)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *(None,) * 4


_autograd.register(
    _LIBRARY, "rms_norm_silu", _rms_norm_silu, _rms_norm_silu_backward, _fake, _fake_backward, _backward,
    _setup_context,
)  # fmt: skip
