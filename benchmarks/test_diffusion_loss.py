"""The training loss of a batch whose noise is drawn, and its gradient in the network's output."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng

from .conftest import provided

SHAPES = [(64, 3, 32, 32), (1, 3, 2, 2)]
CASES = [(shape, "float32") for shape in SHAPES] + [(SHAPES[0], "bfloat16"), (SHAPES[0], "float16")]


def eager_loss(process, x_start, t, noise, device):
    """What everybody writes; the noise has been kept from noising."""
    a, b = (table.float().to(device) for table in (process.target_x0, process.target_eps))

    def loss(m):
        x0 = x_start / 127.5 - 1 if x_start.dtype is torch.uint8 else x_start
        target = a[t].view(-1, 1, 1, 1) * x0 + b[t].view(-1, 1, 1, 1) * noise
        return (m - target).square().flatten(1).mean(1)

    return loss


@pytest.mark.parametrize("shape, dtype", CASES, ids=str)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff", "fastdiff, noise given"])
def test_diffusion_loss(measure, device, provider, passes, prediction, shape, dtype):
    process = GaussianProcess(schedules.linear(1000), prediction)
    t, x_start = torch.randint(0, 1000, shape[:1], device=device), torch.rand(shape, device=device) * 2 - 1
    x_start, noise = ((x_start + 1) * 127.5).to(torch.uint8), torch.randn(shape, device=device)
    output = torch.randn(shape, device=device).to(getattr(torch, dtype)).requires_grad_(passes == "both")
    key, ids = rng.make_rng(0, 0, device), torch.arange(shape[0], device=device)
    a, b = (process.table(name, device) for name in ("target_x0", "target_eps"))
    if provider == "fastdiff":
        loss = lambda m: ops.diffusion_loss(m, x_start, t, a, b, rng=key, sample_ids=ids)  # noqa: E731
    elif provider == "fastdiff, noise given":
        loss = lambda m: ops.diffusion_loss(m, x_start, t, a, b, noise)  # noqa: E731
    else:
        loss = provided(provider, eager_loss(process, x_start, t, noise, device))
    upstream = torch.full(shape[:1], 1 / shape[0], device=device)

    def both():
        return torch.autograd.grad(loss(output), output, upstream)

    function = both if passes == "both" else lambda: loss(output)
    measure(f"diffusion_loss {list(shape)} {dtype} {prediction} {passes}", provider, function, same=function)
