"""Contract of `group_norm_silu` and of its gradient."""

import math

import torch
from torch.autograd.function import once_differentiable

from . import _check, _dispatch, _layout

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "group_norm_silu(Tensor x, Tensor? weight, Tensor? bias, Tensor? add, Tensor? scale, Tensor? shift, int groups,"
    " float eps, bool silu, str backend) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "group_norm_silu_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
    " Tensor? add, Tensor? scale, Tensor? shift, int groups, bool silu, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def group_norm_silu(x, groups, weight=None, bias=None, *, eps=1e-5, add=None, scale=None, shift=None, silu=True):
    """y = act((x + add - mean) / sqrt(var + eps) * weight + bias) * (1 + scale) + shift), act = SiLU or the identity.

    mean and the population variance are of x + add, over each sample's group of C / groups channels.

    Args:
        x: [B, C, *], any floating dtype, any strides; y has x's strides where x is dense, else it is contiguous.
        groups: int that divides C.
        weight, bias: [C], float32 or x's dtype.
        add, scale, shift: [B, C], floating, any strides.
        silu: h * sigmoid(h) at the end, or nothing.

    Returns y, like x. Arithmetic and statistics are float32 (float64 for float64), the variance two-pass or Welford's,
    rounded once. Differentiable once in x, weight, bias, add, scale and shift, each gradient in its input's dtype.
    Raises ValueError or TypeError that names the argument.
    Source: Wu and He, "Group normalization", 2018; scale and shift as in Dhariwal and Nichol 2021 (AdaGN).
    """
    _check_group_norm_silu(x, groups, weight, bias, eps, add, scale, shift)
    tensors = x, weight, bias, add, scale, shift
    backend = _dispatch.requested()
    if not _dispatch.eager(*tensors):
        return torch.ops.fastdiff.group_norm_silu(*tensors, groups, eps, silu, backend)[0]
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        return _GroupNormSilu.apply(*tensors, groups, eps, silu, backend)
    return _forward(*tensors, groups, eps, silu, backend, None, None)


def _check_group_norm_silu(x, groups, weight, bias, eps, add, scale, shift):
    shape, dtype, device = _check.image("x", x)
    C = shape[1]
    if type(groups) is not int or groups < 1 or C % groups:
        raise ValueError(f"groups must be a positive int that divides C = {C}, got {groups}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    if not (weight is bias is None):
        _check_affine(weight, bias, C, dtype, device)
    if not (add is scale is shift is None):
        for name, value in (("add", add), ("scale", scale), ("shift", shift)):
            if value is not None:
                _check.floating(name, value, shape[:2], device)
    _check.no_tangent("group_norm_silu", x=x, weight=weight, bias=bias, add=add, scale=scale, shift=shift)


def _check_affine(weight, bias, C, dtype, device):
    """[C] each, float32 or x's dtype."""
    name, value = ("bias", bias) if weight is None else ("weight", weight)
    _check.is_tensor(name, value)
    found = value.dtype
    if found is not torch.float32 and found is not dtype:
        raise ValueError(f"{name} must be float32 or x's {dtype}, got {found}")
    if weight is None or bias is None:
        _check.tensors(device, name, value, (C,), found)
        return
    _check.is_tensor("bias", bias)
    if bias.dtype is not found:
        raise ValueError(f"bias must be of weight's dtype {found}, got {bias.dtype}")
    _check.tensors(device, "weight", weight, (C,), found, "bias", bias, (C,), found)


def _rows(value):
    """[B, C] with unit channel stride and any row stride."""
    return value if value is None or value.stride(1) == 1 or value.shape[1] == 1 else value.contiguous()


def _vector(value):
    return value if value is None else value.contiguous()


def _in_layout_of(result, like):
    """The result with the strides of `like` where those are dense."""
    other = torch.empty_like(like)
    return result if other.stride() == result.stride() else other.copy_(result)


def _forward(x, weight, bias, add, scale, shift, groups, eps, silu, backend, mean, rstd):
    """y; fills mean and rstd where they are wanted."""
    dense = _layout.dense(x)
    y = torch.empty_like(dense)
    if not (add is scale is shift is None):
        add, scale, shift = _rows(add), _rows(scale), _rows(shift)
    _dispatch.function("group_norm_silu", backend, x)(
        dense, _vector(weight), _vector(bias), groups, eps, add, scale, shift, silu, y, mean, rstd,
    )  # fmt: skip
    return y if dense is x else _in_layout_of(y, x)


def _group_norm_silu(x, weight, bias, add, scale, shift, groups, eps, silu, backend):
    mean, rstd = _statistics(x, groups)
    return _forward(x, weight, bias, add, scale, shift, groups, eps, silu, backend, mean, rstd), mean, rstd


def _statistics(x, groups):
    """Room for mean and rstd, [B, G] each."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    mean = x.new_empty((x.shape[0], groups), dtype=dtype)
    return mean, torch.empty_like(mean)


def _gradients(grad_y, x, mean, rstd, weight, bias, add, scale, shift, groups, silu, needs, backend):
    """Of x, weight, bias, add, scale and shift; None where it is not needed."""
    dense = _layout.dense(x)
    grad_y = grad_y if grad_y.dtype is x.dtype else grad_y.to(x.dtype)
    grad_y = _layout.in_layout(grad_y, _layout.addressed_last(dense))
    inputs = (dense, weight, bias, add, scale, shift)
    gradients = [_gradient(value) if need else None for value, need in zip(inputs, needs, strict=True)]
    if not (add is scale is shift is None):
        add, scale, shift = _rows(add), _rows(scale), _rows(shift)
    _dispatch.function("group_norm_silu_backward", backend, x)(
        grad_y, dense, mean, rstd, _vector(weight), _vector(bias), groups, add, scale, shift, silu, *gradients,
    )  # fmt: skip
    if dense is not x and gradients[0] is not None:
        gradients[0] = _in_layout_of(gradients[0], x)
    return gradients


def _group_norm_silu_backward(grad_y, x, *arguments):
    """The dispatcher's form: always six tensors."""
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in _gradients(grad_y, x, *arguments))


def _gradient(value):
    """Where the gradient of an input goes: [B, C] and [C] ones are contiguous."""
    if value.dim() > 2:
        return torch.empty_like(value)
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def _fake(x, weight, bias, add, scale, shift, groups, eps, silu, backend):
    return torch.empty_like(x), *_statistics(x, groups)


def _fake_backward(grad_y, x, mean, rstd, weight, bias, add, scale, shift, groups, silu, needs, backend):
    inputs = (x, weight, bias, add, scale, shift)
    return tuple(_gradient(value) if need else x.new_empty(0) for value, need in zip(inputs, needs, strict=True))


class _GroupNormSilu(torch.autograd.Function):
    """The eager path's gradient; the dispatcher's is registered below."""

    @staticmethod
    def forward(ctx, x, weight, bias, add, scale, shift, groups, eps, silu, backend):
        y, mean, rstd = _group_norm_silu(x, weight, bias, add, scale, shift, groups, eps, silu, backend)
        ctx.save_for_backward(x, weight, bias, add, scale, shift, mean, rstd)
        ctx.options = groups, silu, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, weight, bias, add, scale, shift, mean, rstd = ctx.saved_tensors
        groups, silu, backend = ctx.options
        needs = ctx.needs_input_grad[:6]
        gradients = _gradients(
            grad_y, x, mean, rstd, weight, bias, add, scale, shift, groups, silu, needs, backend
        )  # fmt: skip
        return *gradients, None, None, None, None


def _setup_context(ctx, inputs, output):
    *tensors, groups, _, silu, backend = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(*tensors, mean, rstd)
    ctx.options = groups, silu, backend


def _backward(ctx, grad_y, grad_mean, grad_rstd):
    *tensors, mean, rstd = ctx.saved_tensors
    x, weight, bias, add, scale, shift = tensors
    groups, silu, backend = ctx.options
    needs = [bool(need) for need in ctx.needs_input_grad[:6]]
    gradients = torch.ops.fastdiff.group_norm_silu_backward(
        grad_y, x, mean, rstd, weight, bias, add, scale, shift, groups, silu, needs, backend
    )
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *(None,) * 4


def _no_double_backward(ctx, *gradients):
    raise NotImplementedError("group_norm_silu is differentiable once: its gradient has no gradient")


_LIBRARY.impl("group_norm_silu", _group_norm_silu, "CompositeExplicitAutograd")
_LIBRARY.impl("group_norm_silu_backward", _group_norm_silu_backward, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::group_norm_silu", _fake, lib=_LIBRARY)
torch.library.register_fake("fastdiff::group_norm_silu_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("fastdiff::group_norm_silu", _backward, setup_context=_setup_context, lib=_LIBRARY)
torch.library.register_autograd("fastdiff::group_norm_silu_backward", _no_double_backward, lib=_LIBRARY)
