"""Contract of `group_norm_silu` and of its gradient."""

import math

import torch

from . import _autograd, _check, _dispatch, _layout
from . import rng as streams

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "group_norm_silu(Tensor x, Tensor? weight, Tensor? bias, Tensor? add, Tensor? scale, Tensor? shift,"
    " Tensor? residual, Tensor? rng, Tensor? sample_ids, int groups, float eps, bool silu, float dropout, int layer,"
    " str backend) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "group_norm_silu_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
    " Tensor? add, Tensor? scale, Tensor? shift, Tensor? rng, Tensor? sample_ids, int groups, bool silu,"
    " float dropout, int layer, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


_NONE = (None,) * 6  # gradients that nobody needs


def group_norm_silu(
    x,
    groups,
    weight=None,
    bias=None,
    *,
    eps=1e-5,
    add=None,
    scale=None,
    shift=None,
    silu=True,
    dropout=0.0,
    rng=None,
    sample_ids=None,
    layer=0,
    residual=None,
):
    """y = drop(act(((x + add - mean) / sqrt(var + eps) * weight + bias) * (1 + scale) + shift)) + residual.

    act is SiLU or the identity; mean and the population variance are of x + add, over each sample's group of C / groups
    channels. drop(a) = a / (1 - dropout) where the element is kept, else 0. Element i of a sample, in logical CHW order
    whatever the layout, is kept where word i % 4 of Philox4x32-10 with counter (i // 4, sample_id, draw, 256 + layer)
    is not below floor(dropout * 2^32): the mask depends on rng, sample and layer alone, and the backward pass draws it
    again.

    Args:
        x: [B, C, *], any floating dtype, any strides; y has x's strides where x is dense, else it is contiguous.
        groups: int that divides C.
        weight, bias: [C], float32 or x's dtype.
        add, scale, shift: [B, C], floating, any strides.
        silu: h * sigmoid(h) at the end, or nothing.
        dropout: probability in [0, 1) that an element is 0; 0 outside training, where it costs nothing.
        rng, sample_ids: int64 [2] = (seed bits, draw) and [B] in [0, 2^32), where dropout is not 0; unchanged until the
            backward pass.
        layer: int in [0, 2^32 - 256), a number of its own for each use in a network.
        residual: like x, of x's dtype, any strides.

    Returns y, like x. Arithmetic and statistics are float32 (float64 for float64), the variance two-pass or Welford's,
    rounded once. Differentiable once in x, weight, bias, add, scale, shift and residual (whose gradient is that of y),
    each gradient in its input's dtype.
    Raises ValueError or TypeError that names the argument.
    Source: Wu and He, "Group normalization", 2018; scale and shift as in Dhariwal and Nichol 2021 (AdaGN).
    """
    _check_group_norm_silu(x, groups, weight, bias, eps, add, scale, shift)
    options = dropout, layer
    if residual is None and type(dropout) is float and dropout == 0.0:
        rng = sample_ids = None
    else:
        rng, sample_ids = _check_epilogue(x, dropout, rng, sample_ids, layer, residual)
    tensors = x, weight, bias, add, scale, shift, residual
    backend = _dispatch.requested()
    if not _dispatch.eager(*tensors):
        return torch.ops.fastdiff.group_norm_silu(*tensors, rng, sample_ids, groups, eps, silu, *options, backend)[0]
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        return _GroupNormSilu.apply(*tensors, (rng, sample_ids, groups, eps, silu, *options, backend))
    return _forward(*tensors, rng, sample_ids, groups, eps, silu, *options, backend, None, None)


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
    if _check.forward_mode():
        _check.no_tangent("group_norm_silu", x=x, weight=weight, bias=bias, add=add, scale=scale, shift=shift)


def _check_epilogue(x, dropout, rng, sample_ids, layer, residual):
    """rng and sample_ids, None where nothing is dropped."""
    if residual is not None:
        _check.is_tensor("residual", residual)
        _check.tensors(x.device, "residual", residual, x.shape, x.dtype)
        _check.no_tangent("group_norm_silu", residual=residual)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if dropout == 0:
        return None, None
    if rng is None or sample_ids is None:
        name = "rng" if rng is None else "sample_ids"
        raise ValueError(f"{name} must be a tensor where dropout is not 0, got None")
    _check.is_tensor("rng", rng)
    _check.is_tensor("sample_ids", sample_ids)
    _check.counters(rng, sample_ids, x.shape[0], x.device)
    if type(layer) is not int or not 0 <= layer < 2**32 - streams.DROPOUT:
        raise ValueError(f"layer must be an int in [0, 2**32 - {streams.DROPOUT}), got {layer}")
    return rng, sample_ids


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


def _forward(x, weight, bias, add, scale, shift, residual, rng, sample_ids, groups, eps, silu, dropout, layer, backend,
             mean, rstd):  # fmt: skip
    """y; fills mean and rstd where they are wanted."""
    dense = _layout.dense(x)
    y = torch.empty_like(dense)
    if not (add is scale is shift is None):
        add, scale, shift = _layout.rows(add), _layout.rows(scale), _layout.rows(shift)
    epilogue = ()
    if not (residual is rng is None):
        residual = _layout.in_layout(residual, _layout.addressed_last(dense))
        epilogue = residual, *_drop(rng, sample_ids, dropout, layer)
    _dispatch.function("group_norm_silu", backend, x)(
        dense, _layout.vector(weight), _layout.vector(bias), groups, eps, add, scale, shift, silu, y, mean, rstd,
        *epilogue,
    )  # fmt: skip
    return y if dense is x else _layout.in_strides_of(y, x)


def _drop(rng, sample_ids, dropout, layer):
    """What backends take: rng, sample_ids, the least word that keeps, the factor of what is kept, the stream."""
    if rng is None:
        return None, None, 0, 1.0, 0
    return (
        rng.contiguous(), sample_ids.contiguous(), int(dropout * 2**32), 1 / (1 - dropout), streams.DROPOUT + layer
    )  # fmt: skip


def _group_norm_silu(x, weight, bias, add, scale, shift, residual, rng, sample_ids, groups, *options):
    mean, rstd = _statistics(x, groups)
    y = _forward(x, weight, bias, add, scale, shift, residual, rng, sample_ids, groups, *options, mean, rstd)
    return y, mean, rstd


def _statistics(x, groups):
    """Room for mean and rstd, [B, G] each."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    mean = x.new_empty((x.shape[0], groups), dtype=dtype)
    return mean, torch.empty_like(mean)


def _gradients(grad_y, x, mean, rstd, weight, bias, add, scale, shift, rng, sample_ids, groups, silu, dropout, layer,
               needs, backend):  # fmt: skip
    """Of x, weight, bias, add, scale and shift; None where it is not needed."""
    dense = _layout.dense(x)
    grad_y = grad_y if grad_y.dtype is x.dtype else grad_y.to(x.dtype)
    grad_y = _layout.in_layout(grad_y, _layout.addressed_last(dense))
    gradients = _layout.gradients(dense, (weight, bias, add, scale, shift), needs)
    if not (add is scale is shift is None):
        add, scale, shift = _layout.rows(add), _layout.rows(scale), _layout.rows(shift)
    drop = () if rng is None else _drop(rng, sample_ids, dropout, layer)
    _dispatch.function("group_norm_silu_backward", backend, x)(
        grad_y, dense, mean, rstd, _layout.vector(weight), _layout.vector(bias), groups, add, scale, shift, silu,
        *gradients, *drop,
    )  # fmt: skip
    if dense is not x and gradients[0] is not None:
        gradients[0] = _layout.in_strides_of(gradients[0], x)
    return gradients


def _group_norm_silu_backward(grad_y, x, *arguments):
    """The dispatcher's form: always six tensors."""
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in _gradients(grad_y, x, *arguments))


def _fake(x, weight, bias, add, scale, shift, residual, rng, sample_ids, groups, *options):
    return torch.empty_like(x), *_statistics(x, groups)


def _fake_backward(grad_y, x, mean, rstd, weight, bias, add, scale, shift, rng, sample_ids, groups, silu, dropout,
                   layer, needs, backend):  # fmt: skip
    gradients = _layout.gradients(x, (weight, bias, add, scale, shift), needs)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


class _GroupNormSilu(torch.autograd.Function):
    """The eager path's gradient; the dispatcher's is registered below. What has no gradient comes as one argument,
    for each takes its time."""

    @staticmethod
    def forward(ctx, x, weight, bias, add, scale, shift, residual, rest):
        y, mean, rstd = _group_norm_silu(x, weight, bias, add, scale, shift, residual, *rest)
        rng, sample_ids, *ctx.options = rest
        ctx.save_for_backward(x, mean, rstd, weight, bias, add, scale, shift, rng, sample_ids)
        return y

    @staticmethod
    @_autograd.once
    def backward(ctx, grad_y):
        groups, _, silu, dropout, layer, backend = ctx.options
        *needs, residual, _ = ctx.needs_input_grad
        if residual and not any(needs):
            return *_NONE, grad_y, None
        gradients = _gradients(grad_y, *ctx.saved_tensors, groups, silu, dropout, layer, needs, backend)
        return *gradients, grad_y if residual else None, None


def _setup_context(ctx, inputs, output):
    x, weight, bias, add, scale, shift, _, rng, sample_ids, *options = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, weight, bias, add, scale, shift, rng, sample_ids)
    ctx.options = options


def _backward(ctx, grad_y, grad_mean, grad_rstd):
    groups, _, silu, dropout, layer, backend = ctx.options
    needs = [bool(need) for need in ctx.needs_input_grad[:6]]
    gradients = _NONE
    if any(needs):
        gradients = torch.ops.fastdiff.group_norm_silu_backward(
            grad_y, *ctx.saved_tensors, groups, silu, dropout, layer, needs, backend
        )
    each = (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
    return *each, grad_y if ctx.needs_input_grad[6] else None, *(None,) * 8


_autograd.register(
    _LIBRARY, "group_norm_silu", _group_norm_silu, _group_norm_silu_backward, _fake, _fake_backward, _backward,
    _setup_context,
)  # fmt: skip
