"""Noising a batch at its timesteps, the noise drawn."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng

from . import ledger
from .conftest import provided
from .test_group_norm_silu import KINDS, MAIN

SHAPES = [(64, 3, 32, 32), (1, 3, 2, 2)]
SOURCES = {  # dtype of x_start, of x_t, layout of both
    "float32": (torch.float32, torch.float32, torch.contiguous_format),
    "uint8": (torch.uint8, torch.float32, torch.contiguous_format),
    **{kind: (dtype, dtype, memory_format) for kind, (dtype, memory_format) in KINDS.items() if kind != MAIN[0]},
    "uint8 to bfloat16 channels_last": (torch.uint8, torch.bfloat16, torch.channels_last),
}
CASES = [(shape, source) for source in ("float32", "uint8") for shape in SHAPES]
CASES += [(SHAPES[0], source) for source in SOURCES if source not in ("float32", "uint8")]


@pytest.mark.parametrize("shape, source", CASES, ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff"])
def test_q_sample(measure, device, provider, source, shape):
    from_dtype, dtype, memory_format = SOURCES[source]
    process = GaussianProcess(schedules.linear(1000))
    alpha, sigma = process.alpha.float().to(device), process.sigma.float().to(device)
    t = torch.randint(0, 1000, shape[:1], device=device)
    x_start = torch.rand(shape, device=device) * 2 - 1
    if from_dtype is torch.uint8:
        x_start = (x_start + 1) * 127.5
    x_start = x_start.to(from_dtype, memory_format=memory_format)

    def eager():
        x0 = x_start / 127.5 - 1 if from_dtype is torch.uint8 else x_start
        x_t = alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * torch.randn_like(x0)
        return x_t.to(dtype)

    key, ids = rng.make_rng(0, 0, device), torch.arange(shape[0], device=device)
    fused = lambda: ops.q_sample(x_start, t, alpha, sigma, rng=key, sample_ids=ids, dtype=dtype)  # noqa: E731
    function = fused if provider == "fastdiff" else provided(provider, eager)
    moved = sum(ledger.q_sample(shape, x_start.element_size(), dtype.itemsize).values())
    measure(f"q_sample {list(shape)} {source}", provider, function, moved, same=fused)
