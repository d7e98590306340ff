"""Where a network's 3x3 convolutions become `fastdiff.ops.conv3x3`, with the norm before and the sums after them.

They do in inference on the CPU: evaluation mode, gradients off, float32, bfloat16 or float16, where
`fastdiff.ops._winograd.choose` has an algorithm quicker than torch's for the shape, and modules are as `UNet` made them
(no hooks, no other class in their place). Other convolutions and linear layers are products there. In training mode
with gradients, in float32 on the CPU, the convolutions alone do, where their gradients are the quicker for it.
Elsewhere, and under `fastdiff.ops.winograd(False)`, all is torch's.
"""

import contextlib
from contextvars import ContextVar

import torch
from torch import nn

from .. import ops
from ..ops import _check, _dispatch, _winograd, native, native_convolution
from ..ops.conv3x3 import unchecked
from .norms import GroupNormSiLU

_HOOKS = torch.nn.modules.module
_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
_PLAIN = frozenset({torch.Tensor, nn.Parameter})
_settled = ContextVar("fastdiff_inference", default=None)  # the dtype in which a whole forward pass is `inference`


def applies(x, *convs, norms=()):
    """Whether convs[0] takes x, each of the others an image of x's size, and all of them and norms fuse."""
    return inference(x) and all(_fits(conv, x) for conv in convs) and all(_is_ours(norm) for norm in norms)


def conv(module, x, norm=None, *, add=None, scale=None, shift=None, residual=None):
    """residual + add + module(norm(x; scale, shift)) as one op, for what `applies` to."""
    weight, bias = _parameters(module)
    prologue = None, None, None, 1e-5, None, None, True
    if norm is not None:
        prologue = norm.groups, *_parameters(norm), norm.eps, scale, shift, norm.silu
    if _conforms(x, weight, bias, add, residual, *prologue):
        return unchecked(x, weight, bias, add, residual, *prologue)
    names = "groups", "norm_weight", "norm_bias", "eps", "scale", "shift", "silu"
    return ops.conv3x3(x, weight, bias, add=add, residual=residual, **dict(zip(names, prologue, strict=True)))


def _conforms(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu):
    """Whether these, of the dtypes that they have in a network, are as the op's contract asks: a quick yes."""
    B, C, H, W = x.shape
    O, dtype = weight.shape[0], x.dtype  # noqa: E741
    each = ["weight", weight, (O, C, 3, 3), weight.dtype]
    if bias is not None:
        each += "bias", bias, (O,), weight.dtype
    if add is not None:
        each += "add", add, (B, O), dtype
    if residual is not None:
        each += "residual", residual, (B, O, H, W), dtype
    if groups is not None:
        if C % groups or norm_weight.dtype not in (torch.float32, dtype):
            return False
        each += "norm_weight", norm_weight, (C,), norm_weight.dtype
        if norm_bias is not None:
            each += "norm_bias", norm_bias, (C,), norm_weight.dtype
    if scale is not None:
        each += "scale", scale, (B, C), dtype, "shift", shift, (B, C), dtype
    return _check.conforms(x.device, *each)


def normed(module, x, norm=None):
    """module(norm(x)), by whichever way applies."""
    if applies(x, module, norms=() if norm is None else (norm,)):
        return conv(module, x, norm)
    return convolved(module, x if norm is None else norm(x))


def convolved(module, x, residual=None):
    """residual + module(x), by `conv3x3` where that trains quicker, as `product` where that applies."""
    if trains(module, x):
        return ops.conv3x3(x, module.weight, module.bias, residual=residual)
    y = product(module, x, residual)
    if y is not None:
        return y
    return module(x) if residual is None else residual + module(x)


def trains(module, x, kind=nn.Conv2d):
    """Whether module, if its class is `kind`, is a convolution of x that trains quicker by Winograd's algorithm."""
    if not (module.training and torch.is_grad_enabled() and x.dtype is torch.float32 and _is_plain(module, kind)):
        return False
    if not _native(x) or not _dispatch.eager(module.weight) or module.weight.dtype is not torch.float32:
        return False
    O, C = module.weight.shape[:2]  # noqa: E741
    return any(_winograd.choose_gradients(x.shape[0], C, O, *x.shape[2:]))


def product(module, x, residual=None, kind=nn.Conv2d):
    """residual + module(x), module a convolution of class `kind`, by `native_convolution`; None where torch should
    compute it.
    """
    if type(module) is not kind or not _free(module, x) or not _is_simple(module):
        return None
    options = dict(stride=module.stride[0], padding=module.padding[0])
    return native_convolution.convolution(x, *_parameters(module), residual, **options)


def linear(module, h, residual=None):
    """residual + module(h), a linear layer of h [B, C] or [B, H, W, C], in the same way where that applies."""
    if type(module) is nn.Linear and _free(module, h):
        return native_convolution.linear(h, *_parameters(module), residual)
    return module(h) if residual is None else residual + module(h)


def _free(module, x):
    """Whether module(x), in inference on the CPU, may be computed otherwise than by torch: at the SIMD levels at which
    that was timed, and is quicker.
    """
    if not (inference(x) and _winograd.allowed() and _unwatched(module)) or native.simd_level() == "baseline":
        return False
    weight, _ = _parameters(module)
    return _is_known(weight, x) and weight.shape[1] == x.shape[1 if weight.dim() == 4 else -1]


def _is_simple(conv):
    """A convolution that `native_convolution` has: of square shape and neither grouped nor dilated."""
    square = all(len({*pair}) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    return square and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


@contextlib.contextmanager
def settled(x):
    """What `inference` found of a network's input holds for all that its forward pass makes of it in this dtype."""
    token = _settled.set(x.dtype)
    try:
        yield
    finally:
        _settled.reset(token)


def inference(x):
    """Whether nobody differentiates, traces or watches, and the CPU has the op in x's dtype, that of autocast."""
    if x.dtype is _settled.get() and type(x) is torch.Tensor and not torch.is_grad_enabled():
        return True
    return not _check.differentiating() and _native(x)


def _native(x):
    """Whether nobody traces or watches, and the CPU has the op in x's dtype, that of autocast."""
    if not _dispatch.eager(x):
        return False
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return False
    if _HOOKS._global_forward_hooks or _HOOKS._global_forward_pre_hooks:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is not x.dtype:
        return False
    requested = _dispatch.requested()
    if requested not in ("", "cpu"):
        return False
    return _dispatch.choose("conv3x3", requested, "cpu", x.dtype) == "cpu"


def _fits(conv, x):
    """A plain 3x3 convolution, in evaluation, that is quicker by Winograd's algorithm."""
    return not conv.training and _is_plain(conv) and takes(_parameters(conv)[0], x)


def _is_plain(conv, kind=nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 that nobody watches."""
    if type(conv) is not kind or _hooked(conv) or conv.kernel_size != (3, 3) or conv.padding != (1, 1):
        return False
    return conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def takes(weight, x):
    """Whether a convolution by weight of an image of x's size is quicker by Winograd's algorithm."""
    if not _is_known(weight, x):
        return False
    O, C, _, _ = weight.shape  # noqa: E741
    B, _, H, W = x.shape
    return bool(_winograd.choose(B, C, O, H, W))


def _is_known(weight, x):
    """An ordinary tensor, float32 or of x's dtype: for x `inference` holds."""
    return type(weight) in _PLAIN and (weight.dtype is torch.float32 or weight.dtype is x.dtype)


def _parameters(module):
    """(weight, bias) past the slow search of nn.Module for its attributes; None where either is no parameter."""
    return module._parameters.get("weight"), module._parameters.get("bias")


def _is_ours(norm):
    if type(norm) is not GroupNormSiLU or not _unwatched(norm):
        return False
    weight, _ = _parameters(norm)
    return weight is not None and weight.dtype in _DTYPES


def _unwatched(module):
    return not (module.training or _hooked(module))


def _hooked(module):
    return module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
