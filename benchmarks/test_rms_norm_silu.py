"""RMSNorm over the channels, FiLM and SiLU as in lucidrains' U-Net, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from fastdiff import ops

from .conftest import provided
from .test_group_norm_silu import KINDS, cases

SHAPES = [(8, 64, 32, 32), (8, 128, 16, 16), (8, 512, 4, 4)]


def make(device, shape, kind):
    """x, weight, scale, shift."""
    dtype, memory_format = KINDS[kind]
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(shape[1], device=device, dtype=dtype)
    scale, shift = torch.randn(shape[0], 2 * shape[1], device=device, dtype=dtype).chunk(2, dim=1)
    return x, weight, scale, shift


def eager(x, weight, scale, shift):
    h = F.normalize(x, dim=1) * weight[:, None, None] * x.shape[1] ** 0.5
    return F.silu(h * (scale[..., None, None] + 1) + shift[..., None, None])


def functions(provider):
    if provider == "fastdiff":
        return lambda x, weight, scale, shift: ops.rms_norm_silu(x, weight, scale=scale, shift=shift)
    return provided(provider, eager)


@pytest.mark.parametrize("shape, kind", cases([*SHAPES, (1, 3, 2, 2)], SHAPES[1]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_forward(measure, device, provider, kind, shape):
    tensors, function = make(device, shape, kind), functions(provider)
    with torch.no_grad():
        call = lambda: function(*tensors)  # noqa: E731
        measure(f"rms_norm_silu {list(shape)} {kind}", provider, call, same=call)


@pytest.mark.parametrize("shape, kind", cases(SHAPES, SHAPES[1]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_backward(measure, device, provider, kind, shape):
    leaves = [value.detach().requires_grad_() for value in make(device, shape, kind)]
    function = functions(provider)
    y = function(*leaves)
    grad_y = torch.randn_like(y)
    measure(f"rms_norm_silu backward {list(shape)} {kind}", provider,
            lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True),
            same=lambda: torch.autograd.grad(function(*leaves), leaves, grad_y))  # fmt: skip
