"""One DDPM step with its noise: x_{t-1} from x_t and the predicted noise, x0 clipped."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng
from fastdiff.samplers.ddpm import ddpm

from . import ledger
from .conftest import provided
from .test_group_norm_silu import KINDS, MAIN, cases

SHAPES = [(64, 3, 32, 32), (8, 4, 64, 64), (1, 3, 2, 2)]


def eager_step(process, t):
    alpha, sigma = process.alpha[t].float(), process.sigma[t].float()
    coef1, coef2 = process.posterior_mean_coef1[t].float(), process.posterior_mean_coef2[t].float()
    std = process.posterior_variance[t].sqrt().float()

    def step(x, eps):
        x0 = ((x - sigma * eps) / alpha).clamp(-1, 1)
        return coef1 * x0 + coef2 * x + std * torch.randn_like(x)

    return step


def diffusers_step(t):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(clip_sample=True)
    return lambda x, eps: scheduler.step(eps, t, x).prev_sample


def fastdiff_step(process, t, shape, device):
    plan = ddpm(process)
    rows = plan.table(device, torch.float32)
    counters, ids = rng.make_rng(0, t, device), torch.arange(shape[0], device=device)
    row = torch.tensor(process.num_timesteps - 1 - t, device=device)
    return lambda x, eps: ops.reverse_step(x, eps, rows, row, out=x, rng=counters, sample_ids=ids)


@pytest.mark.parametrize("shape, kind", cases(SHAPES, SHAPES[0], MAIN[:1]), ids=str)
@pytest.mark.parametrize("provider", ["eager", "compiled", "diffusers", "randn", "fastdiff"])
def test_reverse_step(measure, device, provider, kind, shape):
    process, t = GaussianProcess(schedules.linear(1000)), 500
    dtype, memory_format = KINDS[kind]
    x, eps = (torch.randn(shape, device=device).to(dtype, memory_format=memory_format) for _ in range(2))
    if provider == "diffusers":
        step = diffusers_step(t)
    elif provider == "randn":
        step = lambda x, eps: torch.randn_like(x)  # noqa: E731
    elif provider == "fastdiff":
        step = fastdiff_step(process, t, shape, device)
    else:
        step = provided(provider, eager_step(process, t))
    terms = dict.fromkeys(("p_x", "p_m", "c_x", "c_0", "std"), 1)
    moved = sum(ledger.reverse_step(shape, terms, x.element_size(), x.element_size(), drawn=True).values())
    with torch.no_grad():
        same = lambda: step(x.clone(), eps)  # noqa: E731
        measure(f"reverse_step {list(shape)} {kind}", provider, lambda: step(x, eps), moved, same=same)
