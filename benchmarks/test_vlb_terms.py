"""The variational bound's terms of a batch with a learned variance, and their gradient in the network's output."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, schedules

from .conftest import provided
from .test_diffusion_loss import CASES


def approximate_cdf(u):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def decoder(x0, mean, log_variance):
    """ln P of x0's bin, as OpenAI's code has it."""
    inverse_std = torch.exp(-0.5 * log_variance)
    upper, lower = (approximate_cdf(inverse_std * (x0 - mean + side / 255)) for side in (1, -1))
    ends = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return torch.log(ends.clamp(min=1e-12))


def eager_terms(process, x_start, x_t, t, device):
    """Both terms everywhere, then a choice: what everybody writes."""
    names = ("p_x", "p_m", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_log_variance_clipped", "betas")
    tables = [getattr(process, name).float().to(device) for name in names]

    def terms(output):
        x0 = x_start / 127.5 - 1
        p_x, p_m, c1, c2, smallest, betas = (table[t].view(-1, 1, 1, 1) for table in tables)
        m, v = output.chunk(2, dim=1)
        f = (v + 1) / 2
        log_variance = f * torch.log(betas) + (1 - f) * smallest
        mean, truth = c1 * (p_x * x_t + p_m * m) + c2 * x_t, c1 * x0 + c2 * x_t
        kl = -1 + log_variance - smallest + torch.exp(smallest - log_variance)
        kl = 0.5 * (kl + (truth - mean) ** 2 * torch.exp(-log_variance))
        nats = torch.where((t == 0).view(-1, 1, 1, 1), -decoder(x0, mean, log_variance), kl)
        return nats.flatten(1).mean(1) / math.log(2)

    return terms


@pytest.mark.parametrize("shape, dtype", CASES, ids=str)
@pytest.mark.parametrize("steps", [1000, 1], ids=["all t", "t = 0"])
@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("provider", ["eager", "compiled", "fastdiff", "fastdiff, erf"])
def test_vlb_terms(measure, device, provider, passes, steps, shape, dtype):
    process, (B, C, *space) = GaussianProcess(schedules.linear(1000)), shape
    x_start = torch.randint(0, 256, shape, device=device).to(torch.uint8)
    x_t, t = torch.randn(shape, device=device), torch.randint(0, steps, (B,), device=device)
    output = torch.randn(B, 2 * C, *space, device=device).to(getattr(torch, dtype)).requires_grad_(passes == "both")
    options = dict(variance="learned_range", cdf="erf" if provider.endswith("erf") else "tanh")
    if provider.startswith("fastdiff"):
        terms = lambda m: process.vlb_terms(m, x_start, x_t, t, **options)  # noqa: E731
    else:
        terms = provided(provider, eager_terms(process, x_start, x_t, t, device))
    upstream = torch.full((B,), 1 / B, device=device)

    def both():
        return torch.autograd.grad(terms(output), output, upstream)

    function = both if passes == "both" else lambda: terms(output)
    name = f"vlb_terms {list(shape)} {dtype} {'all t' if steps > 1 else 't = 0'} {passes}"
    measure(name, provider, function, same=function)
