"""Where a network's 3x3 convolutions become `fastdiff.ops.conv3x3`, with the norm before and the sums after them.

They do in inference on the CPU: evaluation mode, gradients off, float32, bfloat16 or float16, where
`fastdiff.ops._winograd.choose` has an algorithm quicker than torch's for the shape, and modules are as `UNet` made them
(no hooks, no other class in their place). 1x1 convolutions and attention's layers go to oneDNN there. In training mode
with gradients, in float32 on the CPU, the convolutions alone do, where their gradients are the quicker for it.
Elsewhere, and under `fastdiff.ops.winograd(False)`, all is torch's.
"""

import torch
from torch import nn

from .. import ops
from ..ops import _check, _dispatch, _winograd
from .norms import GroupNormSiLU

_HOOKS = torch.nn.modules.module
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # torch.compile cannot trace the question
_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def applies(x, *convs, norms=()):
    """Whether convs[0] takes x, each of the others an image of x's size, and all of them and norms fuse."""
    return inference(x) and all(_fits(conv, x) for conv in convs) and all(_is_ours(norm) for norm in norms)


def conv(module, x, norm=None, *, add=None, scale=None, shift=None, residual=None):
    """residual + add + module(norm(x; scale, shift)) as one op, for what `applies` to."""
    prologue = {}
    if norm is not None:
        prologue = dict(groups=norm.groups, norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps, silu=norm.silu)
        prologue |= dict(scale=scale, shift=shift)
    return ops.conv3x3(x, module.weight, module.bias, add=add, residual=residual, **prologue)


def normed(module, x, norm=None):
    """module(norm(x)), by whichever way applies."""
    if applies(x, module, norms=() if norm is None else (norm,)):
        return conv(module, x, norm)
    return convolved(module, x if norm is None else norm(x))


def convolved(module, x, residual=None):
    """residual + module(x), by `conv3x3` where that trains quicker."""
    if trains(module, x):
        return ops.conv3x3(x, module.weight, module.bias, residual=residual)
    return module(x) if residual is None else residual + module(x)


def trains(module, x, kind=nn.Conv2d):
    """Whether module, if its class is `kind`, is a convolution of x that trains quicker by Winograd's algorithm."""
    if not (module.training and torch.is_grad_enabled() and x.dtype is torch.float32 and _is_plain(module, kind)):
        return False
    if not _native(x) or not _dispatch.eager(module.weight) or module.weight.dtype is not torch.float32:
        return False
    O, C = module.weight.shape[:2]  # noqa: E741
    return any(_winograd.choose_gradients(x.shape[0], C, O, *x.shape[2:]))


def pointwise(module, x):
    """module(x), a 1x1 convolution; in float32 inference on the CPU by oneDNN, where torch would use BLAS.

    One thread of an AMD EPYC is 1.3 to 3.3 times as fast so, at the DDPM network's shapes.
    """
    if type(module) is not nn.Conv2d or not _onednn(module, x):
        return module(x)
    return torch.mkldnn_convolution(x, module.weight, module.bias, (0, 0), (1, 1), (1, 1), 1)


def linear(module, h):
    """module(h), a linear layer of h [B, N, C], in the same way as `pointwise`."""
    if type(module) is not nn.Linear or not _onednn(module, h):
        return module(h)
    image = h.unsqueeze(2).permute(0, 3, 1, 2)  # [B, C, N, 1], channels last
    weight = module.weight[:, :, None, None]
    y = torch.mkldnn_convolution(image, weight, module.bias, (0, 0), (1, 1), (1, 1), 1)
    return y.permute(0, 2, 3, 1).flatten(1, 2)


def _onednn(module, x):
    wanted = x.dtype is torch.float32 and _winograd.allowed() and _HAS_ONEDNN
    return wanted and inference(x) and _unwatched(module) and module.weight.dtype is torch.float32


def inference(x):
    """Whether nobody differentiates, traces or watches, and the CPU has the op in x's dtype, that of autocast."""
    return not _check.differentiating() and _native(x)


def _native(x):
    """Whether nobody traces or watches, and the CPU has the op in x's dtype, that of autocast."""
    if not _dispatch.eager(x) or torch.jit.is_tracing():
        return False
    if x.device.type != "cpu" or x.dtype not in _DTYPES or _HOOKS._global_forward_hooks:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is not x.dtype:
        return False
    requested = _dispatch.requested()
    if requested not in ("", "cpu"):
        return False
    return _dispatch.choose("conv3x3", requested, "cpu", x.dtype) == "cpu"


def _fits(conv, x):
    """A plain 3x3 convolution, in evaluation, that is quicker by Winograd's algorithm."""
    return not conv.training and _is_plain(conv) and takes(conv.weight, x)


def _is_plain(conv, kind=nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 that nobody watches."""
    if type(conv) is not kind or _hooked(conv) or conv.kernel_size != (3, 3) or conv.padding != (1, 1):
        return False
    return conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def takes(weight, x):
    """Whether a convolution by weight of an image of x's size is quicker by Winograd's algorithm."""
    O, C = weight.shape[:2]  # noqa: E741
    known = _dispatch.eager(weight) and weight.dtype in (torch.float32, x.dtype)
    return known and bool(_winograd.choose(x.shape[0], C, O, *x.shape[2:]))


def _is_ours(norm):
    return type(norm) is GroupNormSiLU and _unwatched(norm) and norm.weight.dtype in _DTYPES


def _unwatched(module):
    return not (module.training or _hooked(module))


def _hooked(module):
    return module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
