"""Contract of `conv3x3`: a 3x3 convolution with what stands before and after it in a residual block."""

import math

import torch

from . import _autograd, _check, _dispatch, _layout, _winograd

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? residual, int groups, Tensor? norm_weight,"
    " Tensor? norm_bias, float eps, Tensor? scale, Tensor? shift, bool silu, str backend) -> Tensor"
)
_LIBRARY.define(
    "conv3x3_backward(Tensor grad_y, Tensor x, Tensor weight, bool[] needs, str backend) -> (Tensor, Tensor)"
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
    """y = W * h + bias + add + residual, W * h the 3x3 convolution of stride 1 and zero padding 1.

    h = act((GN(x) * norm_weight + norm_bias) * (1 + scale) + shift) as `group_norm_silu` has it where groups is given,
    else x. On the CPU h is made a few rows at a time, never written whole; channels last is the quick layout, and the
    multiplications are Winograd's: F(4x4, 3x3), or F(2x2, 3x3) where maps are small, else torch's own convolution, by
    `fastdiff.ops._winograd.choose`; so are those of its gradients. The filters' transform, 1.8 or 4 times their size,
    is made at the first call and kept until the weight changes or goes, as its version counter, its address and 30 of
    its numbers tell: a write through .data counts if it changes one of those. Where a gradient is recorded it is not
    kept.

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
    Without groups it is differentiable once in x, weight, bias, add and residual, each gradient in its input's dtype;
    with groups it is not. Raises ValueError, TypeError or RuntimeError that names the argument.
    Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
    """
    _check_conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift)
    tensors = x, weight, bias, add, residual, norm_weight, norm_bias, scale, shift
    backend, eager = _dispatch.requested(), _dispatch.eager(*tensors)
    if _check.differentiating():
        names = ("x", "weight", "bias", "add", "residual", "norm_weight", "norm_bias", "scale", "shift")
        refuses = _check.no_tangent if groups is None else _check.no_gradient
        refuses("conv3x3" if groups is None else "conv3x3 with groups", **dict(zip(names, tensors, strict=True)))
        if eager and torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
            return _Conv3x3.apply(x, weight, bias, add, residual, backend)
    call = _conv3x3 if eager else torch.ops.fastdiff.conv3x3
    return call(x, weight, bias, add, residual, groups or 0, norm_weight, norm_bias, eps, scale, shift, silu, backend)


def unchecked(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu):
    """`conv3x3` for a caller who knows that arguments conform and that nobody differentiates, traces or transforms."""
    prologue = groups or 0, norm_weight, norm_bias, eps, scale, shift, silu
    return _conv3x3(x, weight, bias, add, residual, *prologue, _dispatch.requested())


def _check_conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift):
    shape, dtype, device = _check.image("x", x)
    if len(shape) != 4:
        raise ValueError(f"x must have shape [B, C, H, W], got {list(shape)}")
    B, C, H, W = shape
    _check.is_tensor("weight", weight)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (C, 3, 3):
        raise ValueError(f"weight must have shape [O, {C}, 3, 3], got {list(weight.shape)}")
    O = weight.shape[0]  # noqa: E741
    each = _parameter("weight", weight, (O, C, 3, 3), dtype) + _parameter("bias", bias, (O,), dtype)
    each += _floating("add", add, (B, O))
    if residual is not None:
        each += "residual", residual, (B, O, H, W), dtype
    if groups is None:
        _check_no_prologue(norm_weight=norm_weight, norm_bias=norm_bias, scale=scale, shift=shift)
    else:
        if type(groups) is not int or groups < 1 or C % groups:
            raise ValueError(f"groups must be a positive int that divides C = {C}, or None, got {groups}")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must be finite and not negative, got {eps}")
        each += _parameter("norm_weight", norm_weight, (C,), dtype) + _parameter("norm_bias", norm_bias, (C,), dtype)
        each += _floating("scale", scale, (B, C)) + _floating("shift", shift, (B, C))
    _check.tensors(device, *each)


def _check_no_prologue(**values):
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name} must be None where groups is None, got a tensor")


def _parameter(name, value, shape, dtype):
    """What `_check.tensors` is to see of a tensor of this shape, float32 or x's dtype; nothing of None."""
    if value is None:
        return ()
    _check.is_tensor(name, value)
    found = value.dtype
    if found is not torch.float32 and found is not dtype:
        raise ValueError(f"{name} must be float32 or x's {dtype}, got {found}")
    return name, value, shape, found


def _floating(name, value, shape):
    """The same of a tensor of any floating dtype."""
    if value is None:
        return ()
    _check.is_tensor(name, value)
    found = value.dtype
    if found not in _check.FLOATS:
        raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {found}")
    return name, value, shape, found


def _output(x, weight):
    """Where y goes: x's layout where x is dense, else contiguous."""
    B, _, H, W = x.shape
    last = not x.is_contiguous() and _layout.is_channels_last(x)
    return _layout.empty((B, weight.shape[0], H, W), last, x.dtype, x.device)


def _conv3x3(x, weight, *arguments):
    device = x.device.type
    if torch.is_autocast_enabled(device):  # which would have torch's convolution round
        with torch.autocast(device, enabled=False):
            return _conv3x3(x, weight, *arguments)
    *arguments, backend = arguments
    y = _output(x, weight)
    function = _dispatch.function("conv3x3", backend, x)
    if y.numel():
        function(x, weight, *arguments, y)
    return y


def _fake(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, backend):
    return _output(x, weight)


# ---- Gradients ----


def _gradients(grad_y, x, weight, needs, backend):
    """Of x and weight, in their layouts where those are dense; None where it is not needed."""
    grad_y = grad_y if grad_y.dtype is x.dtype else grad_y.to(x.dtype)
    gradients = [torch.empty_like(value) if need else None for value, need in zip((x, weight), needs, strict=True)]
    if not x.numel() or not grad_y.numel():
        return [value if value is None else value.zero_() for value in gradients]
    _dispatch.function("conv3x3_backward", backend, x)(grad_y, x, weight, *gradients)
    return gradients


def _sums(grad_y, needs, dtypes):
    """Of bias and add: sums of grad_y over all but their axes; None where it is not needed."""
    axes = ((0, 2, 3), (2, 3))
    wide = None if grad_y.dtype is torch.float64 else torch.float32
    return [
        grad_y.sum(axis, dtype=wide).to(dtype) if need else None
        for axis, need, dtype in zip(axes, needs, dtypes, strict=True)
    ]


class _Conv3x3(torch.autograd.Function):
    """The eager path's gradient, without a norm; the dispatcher's is registered below."""

    @staticmethod
    def forward(ctx, x, weight, bias, add, residual, backend):
        ctx.save_for_backward(x, weight)
        ctx.backend, ctx.dtypes = backend, [value if value is None else value.dtype for value in (bias, add)]
        with _winograd.keeping(False):
            return _conv3x3(x, weight, bias, add, residual, 0, None, None, 0.0, None, None, False, backend)

    @staticmethod
    @_autograd.once
    def backward(ctx, grad_y):
        *needs, bias, add, residual, _ = ctx.needs_input_grad
        gradients = _gradients(grad_y, *ctx.saved_tensors, needs, ctx.backend) if any(needs) else (None, None)
        return *gradients, *_sums(grad_y, (bias, add), ctx.dtypes), grad_y if residual else None, None


def _conv3x3_backward(grad_y, x, *arguments):
    """The dispatcher's form: always two tensors."""
    return tuple(x.new_empty(0) if value is None else value for value in _gradients(grad_y, x, *arguments))


def _fake_backward(grad_y, x, weight, needs, backend):
    return tuple(torch.empty_like(v) if need else x.new_empty(0) for v, need in zip((x, weight), needs, strict=True))


def _setup_context(ctx, inputs, output):
    x, weight, bias, add, *_ = inputs
    ctx.save_for_backward(x, weight)
    ctx.backend, ctx.dtypes = inputs[-1], [value if value is None else value.dtype for value in (bias, add)]


def _backward(ctx, grad_y):
    *needs, bias, add, residual = ctx.needs_input_grad[:5]
    gradients = (None, None)
    if any(needs):
        found = torch.ops.fastdiff.conv3x3_backward(grad_y, *ctx.saved_tensors, list(needs), ctx.backend)
        gradients = (value if need else None for value, need in zip(found, needs, strict=True))
    return *gradients, *_sums(grad_y, (bias, add), ctx.dtypes), grad_y if residual else None, *(None,) * 8


_autograd.register(
    _LIBRARY, "conv3x3", _conv3x3, _conv3x3_backward, _fake, _fake_backward, _backward, _setup_context
)  # fmt: skip
