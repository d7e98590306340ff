"""GroupNorm + SiLU + 3x3 convolution, and the convolution alone, at shapes of the DDPM network."""

import pytest
import torch
from torch.nn import functional as F

from fastdiff import ops

from .conftest import provided

# [B, C, H, W], O
SHAPES = [((B, *shape), outputs) for B in (1, 8) for shape, outputs in (
    ((128, 32, 32), 128), ((256, 32, 32), 128), ((256, 16, 16), 256), ((512, 8, 8), 256), ((256, 4, 4), 256),
)]  # fmt: skip
GROUPS = 32


@pytest.mark.parametrize("shape, O", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["conv3x3", "group_norm_silu conv3x3"])
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_forward(measure, device, provider, kind, dtype, shape, O):  # noqa: E741
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(O, shape[1], 3, 3, device=device) / (9 * shape[1]) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, gain, offset = (torch.randn(n, device=device).to(dtype) for n in (O, shape[1], shape[1]))
    normalised = kind != "conv3x3"

    def eager():
        h = F.silu(F.group_norm(x, GROUPS, gain, offset)) if normalised else x
        return F.conv2d(h, weight, bias, padding=1)

    norm = {"groups": GROUPS, "norm_weight": gain, "norm_bias": offset} if normalised else {}
    function = (lambda: ops.conv3x3(x, weight, bias, **norm)) if provider == "fastdiff" else provided(provider, eager)
    with torch.no_grad():
        torch.testing.assert_close(function(), eager(), rtol=0.05, atol=0.05 if dtype is torch.bfloat16 else 1e-4)
        flops = 2 * 9 * x.numel() * O
        measure(f"{kind} {list(shape)} {str(dtype).removeprefix('torch.')} to {O}", provider, function, flops=flops)


@pytest.mark.parametrize("shape, O", SHAPES[5:], ids=str)
@pytest.mark.parametrize("provider", ["eager", "fastdiff"])
def test_backward(measure, device, provider, shape, O):  # noqa: E741
    """Forward, and the gradients of inputs, weight and bias."""
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(O, shape[1], 3, 3, device=device) / (9 * shape[1]) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(O, device=device, requires_grad=True)
    B, _, H, W = shape
    grad_y = torch.randn(B, O, H, W, device=device).contiguous(memory_format=torch.channels_last)

    def gradients(convolution):
        return torch.autograd.grad(convolution(), (x, weight, bias), grad_y)

    def eager():
        return gradients(lambda: F.conv2d(x, weight, bias, padding=1))

    def ours():
        return gradients(lambda: ops.conv3x3(x, weight, bias))

    for found, right in zip(ours(), eager(), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())
    flops = 3 * 2 * 9 * x.numel() * O
    name = f"conv3x3 backward {list(shape)} float32 to {O}"
    measure(name, provider, ours if provider == "fastdiff" else eager, flops=flops)
