"""Samples of Gaussian data have the mean and the variance that the plan gives them, propagated exactly."""

import functools
import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.processes import SigmaProcess
from fastdiff.samplers import SOLVERS
from fastdiff.samplers.solvers import OF_NODES
from tests.samplers.gaussian_data import DEVIATION, MEAN, line, network, propagated

PROCESSES = {
    "discrete": GaussianProcess(schedules.linear(1000)),
    "sigma": SigmaProcess("edm", sigma_min=0.02, sigma_max=20.0, sigma_data=0.4),
}
CASES = [
    ("ddpm", {}), ("ddim", {}), ("ddim", {"eta": 1.0}), ("euler", {}), ("euler", {"s_churn": 10.0}),
    ("euler_ancestral", {}), ("heun", {}), ("heun", {"s_churn": 10.0}), ("dpm_2", {}), ("dpm_2_ancestral", {}),
    ("lms", {}), ("ipndm", {}), ("dpmpp_2s", {}), ("dpmpp_2s_ancestral", {}), ("dpmpp_sde", {}), ("dpmpp_2m", {}),
    ("dpmpp_3m", {}), ("dpmpp_2m_sde", {}), ("dpmpp_3m_sde", {}), ("dpm_multistep", {}),
    ("dpm_multistep", {"eta": 1.0}), ("dpm_singlestep", {}), ("unipc", {}), ("unipc", {"order": 3, "variant": "bh1"}),
]  # fmt: skip


def plan_moments(process, plan):
    return propagated(plan, line(process), 0.0, plan.start**2)


def assert_moments(samples, mean, variance, errors=3):
    """Within so many Monte-Carlo standard errors."""
    n = samples.numel()
    assert abs(samples.double().mean().item() - mean) < errors * math.sqrt(variance / n)
    assert abs(samples.double().var().item() / variance - 1) < errors * math.sqrt(2 / n)


def test_every_solver_is_here():
    assert {name for name, _ in CASES} == {*OF_NODES} - {"ddim_reverse"}  # SDEs have tests of their own


@pytest.mark.parametrize("steps", [20, 80])
@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("name, options", CASES)
def test_moments(name, options, kind, steps, one_thread):
    process = PROCESSES[kind]
    if name == "ddpm" and kind == "sigma":
        with pytest.raises(TypeError, match="process must be a GaussianProcess for ddpm"):
            SOLVERS[name](process)
        return
    sampler = Sampler(network(process), process, functools.partial(SOLVERS[name], **options), steps, clip=None)
    samples, plan = sampler.sample((128, 1, 32, 32), seed=1), sampler.plan
    assert_moments(samples, *plan_moments(process, plan))
    faults = [{"c_x": plan["c_0"], "c_0": plan["c_x"]}]
    if (plan["std"] > 0).any():
        faults.append({"std": 1.01 * plan["std"]})
    for fault in faults:
        mean, variance = plan_moments(process, plan.replace(**fault))
        with pytest.raises(AssertionError):
            assert_moments(samples, mean, variance)


@pytest.mark.parametrize("name, options", CASES)
def test_bias_is_small_at_80_steps(name, options):
    """What a solver itself gets wrong of the data's deviation: 8% at order 1, else 2%."""
    process = PROCESSES["sigma" if name != "ddpm" else "discrete"]
    plan = SOLVERS[name](process, 80, clip=None, **options)
    mean, variance = plan_moments(process, plan)
    assert mean == pytest.approx(MEAN, abs=0.02)
    first_order = name in ("ddpm", "ddim", "euler", "euler_ancestral")
    assert math.sqrt(variance) / DEVIATION == pytest.approx(1, abs=0.08 if first_order else 0.02)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m_sde"])
def test_mixture_data(name, one_thread):
    """Two modes: the share of each, and the moments of each, within the bias of 40 steps and 3 standard errors."""
    weight, mean, std = (torch.tensor(v).view(2, 1, 1, 1, 1) for v in ([0.3, 0.7], [-0.8, 0.5], [0.1, 0.2]))

    def denoiser(x, sigma):
        variance = std.square() + sigma.view(-1, 1, 1, 1).square()
        share = (weight.log() - (x - mean).square() / (2 * variance) - variance.log() / 2).softmax(0)
        return (share * (std.square() * x + (variance - std.square()) * mean) / variance).sum(0)

    process = SigmaProcess("x0", sigma_min=0.01, sigma_max=40.0)
    samples = Sampler(denoiser, process, name, 40, clip=None).sample((64, 1, 32, 32), seed=2)
    low = samples < -0.3
    n = samples.numel()
    assert low.double().mean().item() == pytest.approx(0.3, abs=0.004 + 3 * math.sqrt(0.21 / n))
    for chosen, m, s in ((low, -0.8, 0.1), (~low, 0.5, 0.2)):
        assert samples[chosen].mean().item() == pytest.approx(m, abs=0.01)
        assert samples[chosen].std().item() == pytest.approx(s, rel=0.05)
