"""Noising a batch at its timesteps, the noise drawn."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng

from . import ledger
from .conftest import provided

SHAPES = [(64, 3, 32, 32), (1, 3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("source", ["float32", "uint8"])
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_q_sample(measure, device, provider, source, shape):
    process = GaussianProcess(schedules.linear(1000))
    alpha, sigma = process.alpha.float().to(device), process.sigma.float().to(device)
    t = torch.randint(0, 1000, shape[:1], device=device)
    x_start = torch.rand(shape, device=device) * 2 - 1
    if source == "uint8":
        x_start = ((x_start + 1) * 127.5).to(torch.uint8)

    def eager():
        x0 = x_start / 127.5 - 1 if source == "uint8" else x_start
        return alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * torch.randn_like(x0)

    key, ids = rng.make_rng(0, 0, device), torch.arange(shape[0], device=device)
    fused = lambda: ops.q_sample(x_start, t, alpha, sigma, rng=key, sample_ids=ids)  # noqa: E731
    function = fused if provider == "fastdiff" else provided(provider, eager)
    moved = sum(ledger.q_sample(shape, x_start.element_size(), 4).values())
    measure(f"q_sample {list(shape)} {source}", provider, function, moved)
