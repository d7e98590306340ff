"""GroupNorm and SiLU, 32 groups, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from fastdiff import ops

from .conftest import provided

SHAPES = [(8, 128, 32, 32), (8, 256, 16, 16), (1, 128, 32, 32), (8, 256, 8, 8), (8, 512, 4, 4)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KINDS = {
    f"{str(dtype).removeprefix('torch.')} {name}": (dtype, memory_format)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for name, memory_format in LAYOUTS.items()
}
MAIN = ("float32 contiguous", "bfloat16 channels_last")  # at every shape; the others at one


def cases(shapes, one=None, main=MAIN):
    """(shape, kind) of a benchmark."""
    rest = [(one, kind) for kind in KINDS if one and kind not in main]
    return [(shape, kind) for kind in main for shape in shapes] + rest


def make(device, shape, kind, groups=32):
    """x, weight, bias."""
    dtype, memory_format = KINDS[kind]
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
    weight, bias = (torch.randn(shape[1], device=device, dtype=dtype) for _ in range(2))
    return x, weight, bias, min(groups, shape[1])


def functions(provider, groups):
    if provider == "fastdiff":
        return lambda x, weight, bias: ops.group_norm_silu(x, groups, weight, bias)
    return provided(provider, lambda x, weight, bias: F.silu(F.group_norm(x, groups, weight, bias)))


@pytest.mark.parametrize("shape, kind", cases([*SHAPES, (1, 3, 2, 2)], SHAPES[1]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_forward(measure, device, provider, kind, shape):
    x, weight, bias, groups = make(device, shape, kind, 32 if shape[1] > 3 else 1)
    function = functions(provider, groups)
    moved = 2 * x.nbytes  # read once and written once, whatever the way
    with torch.no_grad():
        call = lambda: function(x, weight, bias)  # noqa: E731
        measure(f"group_norm_silu {list(shape)} {kind}", provider, call, moved, same=call)


@pytest.mark.parametrize("shape, kind", cases(SHAPES, SHAPES[1]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_backward(measure, device, provider, kind, shape):
    *tensors, groups = make(device, shape, kind)
    leaves = [value.requires_grad_() for value in tensors]
    function = functions(provider, groups)
    y = function(*leaves)
    grad_y = torch.randn_like(y)
    moved = 3 * y.nbytes  # x and the gradient of y read, that of x written
    measure(f"group_norm_silu backward {list(shape)} {kind}", provider,
            lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True), moved,
            same=lambda: torch.autograd.grad(function(*leaves), leaves, grad_y))  # fmt: skip


def dropping(provider, groups, device, B):
    """The end of a residual block: norm, SiLU, dropout, and the block's input added."""
    if provider == "fastdiff":
        counters = dict(rng=ops.rng.make_rng(1, device=device), sample_ids=torch.arange(B, device=device))
        return lambda x, weight, bias, residual: ops.group_norm_silu(
            x, groups, weight, bias, dropout=0.1, residual=residual, **counters
        )
    return provided(
        provider,
        lambda x, weight, bias, residual: residual + F.dropout(F.silu(F.group_norm(x, groups, weight, bias)), 0.1),
    )


@pytest.mark.parametrize("shape, kind", cases(SHAPES[:2]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_dropout_and_residual(measure, device, provider, kind, shape):
    x, weight, bias, groups = make(device, shape, kind)
    function, residual = dropping(provider, groups, device, shape[0]), torch.randn_like(x)
    with torch.no_grad():
        call = lambda: function(x, weight, bias, residual)  # noqa: E731
        measure(f"group_norm_silu dropout {list(shape)} {kind}", provider, call, same=call)


@pytest.mark.parametrize("shape, kind", cases(SHAPES[:2]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_dropout_and_residual_backward(measure, device, provider, kind, shape):
    *tensors, groups = make(device, shape, kind)
    leaves = [value.requires_grad_() for value in (*tensors, torch.randn_like(tensors[0]))]
    function = dropping(provider, groups, device, shape[0])
    y = function(*leaves)
    grad_y = torch.randn_like(y)
    measure(f"group_norm_silu dropout backward {list(shape)} {kind}", provider,
            lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True),
            same=lambda: torch.autograd.grad(function(*leaves), leaves, grad_y))  # fmt: skip
