"""Euler-Maruyama on the reverse SDE."""

import math

import pytest
import torch

from fastdiff import Sampler
from fastdiff.processes import VPSDE, GaussianProcess, InterpolatedProcess, NCSNProcess
from fastdiff.samplers import Plan, euler_maruyama
from tests.processes.golden import error
from tests.processes.score_sde import PROCESSES, recorded
from tests.samplers.by_hand import run
from tests.samplers.known import Gaussian, Mixture, assert_moments, moments

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)
ALL = pytest.mark.parametrize("kind", PROCESSES)


@ALL
@pytest.mark.parametrize("precision, tolerance", [("f64", 1e-10), ("f32", 2e-5)])
def test_steps_are_the_recorded_ones(backend, kind, precision, tolerance):
    """score_sde's predictor steps by 1 / N whatever the time."""
    arrays, process, x, data = recorded(kind)
    x, model = x.to({"f64": torch.float64, "f32": torch.float32}[precision]), data.model(process)
    for b, t in enumerate(arrays["t"]):
        for denoise, name in ((False, "x"), (True, "x_mean")):
            plan = euler_maruyama(process, [t], levels=1000, denoise=denoise)
            stepped = run(plan, model, x[b : b + 1], lambda row, b=b: arrays["noise"][row, b : b + 1])
            key = f"{kind}.{precision}.predictor.euler_maruyama.{name}"
            assert error(stepped, arrays[key][b : b + 1]) < tolerance


@ALL
@pytest.mark.parametrize("steps", [20, 80])
def test_moments_on_gaussian_data(kind, steps):
    process = PROCESSES[kind]()
    sampler = Sampler(DATA.model(process), process, euler_maruyama, steps, clip=None)
    samples = sampler.sample((64, 1, 32, 32), seed=1)
    assert_moments(samples, *moments(sampler.plan, process, MEAN, STD))


@pytest.mark.parametrize("kind", ["vp", "subvp"])
def test_one_percent_more_noise_is_noticed(kind):
    process = PROCESSES[kind]()
    sampler = Sampler(DATA.model(process), process, euler_maruyama, 80, clip=None)
    samples, plan = sampler.sample((256, 1, 32, 32), seed=1), sampler.plan
    with pytest.raises(AssertionError):
        assert_moments(samples, *moments(plan.replace(std=plan["std"] * 1.01), process, MEAN, STD))
    swapped = plan.replace(c_x=plan["c_m"], c_m=plan["c_x"])
    with pytest.raises(AssertionError):
        assert_moments(samples, *moments(swapped, process, MEAN, STD))


@ALL
def test_its_weak_order_is_one(kind):
    """From the exact marginal at t_max to that at t_min, the errors of mean and variance halve with the step.

    VE's mean does not move, whatever the step. Towards t = 0 higher orders hide the first: what noise does early is
    forgotten.
    """
    process = PROCESSES[kind](t_min=0.5)
    first, exact = (marginal(process, t) for t in (process.t_max, process.t_min))
    errors = []
    for steps in (257, 513):
        plan = euler_maruyama(process, steps)
        reached = moments(plan, process, MEAN, STD, rows=steps - 1, initial=first)
        errors.append([abs(a - b) for a, b in zip(reached, exact, strict=True)])
    (mean_before, variance_before), (mean_after, variance_after) = errors
    assert math.log2(variance_before / variance_after) == pytest.approx(1, abs=0.2)
    assert mean_after < 1e-12 if kind == "ve" else math.log2(mean_before / mean_after) == pytest.approx(1, abs=0.2)


def marginal(process, t):
    """(mean, variance) of the noisy data."""
    alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
    return alpha * MEAN, (alpha * STD) ** 2 + sigma**2


def test_all_steps_reach_the_data():
    process = VPSDE(t_min=1e-4)
    mean, variance = moments(euler_maruyama(process), process, MEAN, STD)
    assert mean == pytest.approx(MEAN, abs=0.003) and variance**0.5 == pytest.approx(STD, rel=0.01)


@pytest.mark.parametrize("steps", [20, 80])
def test_moments_on_a_mixture(steps):
    """Against the density of a row's state, propagated on a grid."""
    data, process = Mixture([0.35, 0.65], [-0.8, 0.5], [0.25, 0.4]), VPSDE()
    sampler = Sampler(data.model(process), process, euler_maruyama, steps, clip=None)
    samples = sampler.sample((64, 1, 32, 32), seed=2)
    assert_moments(samples, *density_moments(sampler.plan, data.model(process)))


def density_moments(plan, model, extent=6.0, N=500):
    """(mean, variance) after a plan without history of elementwise steps: densities on [-extent, extent]."""
    x = torch.linspace(-extent, extent, N, dtype=torch.float64)
    density = torch.exp(-(x**2) / (2 * plan.start**2))
    for row, time in enumerate(plan.time):
        weight = density / density.sum()
        m = model(x.view(1, 1, 1, N), time.expand(1)).flatten()
        c = {name: plan[name][row] for name in ("p_x", "p_m", "c_x", "c_0", "c_m", "std")}
        moved = c["c_x"] * x + c["c_0"] * (c["p_x"] * x + c["p_m"] * m) + c["c_m"] * m
        if c["std"] == 0:
            break
        density = (weight * torch.exp(-(((x[:, None] - moved) / c["std"]) ** 2) / 2)).sum(1)
    mean = (weight * moved).sum()
    return mean.item(), ((weight * (moved - mean) ** 2).sum() + c["std"] ** 2).item()


def test_the_last_row_adds_no_noise_unless_asked():
    assert euler_maruyama(VPSDE(), 5)["std"][-1] == 0
    plan = euler_maruyama(VPSDE(), 5, denoise=False)
    assert (plan["std"] > 0).all() and isinstance(plan, Plan) and plan.start == 1


def test_clip_bounds_the_estimate():
    assert euler_maruyama(VPSDE(), 5, clip=1.0)["bound"].tolist() == [1.0] * 5
    assert euler_maruyama(VPSDE(), 5)["bound"].isinf().all()


def test_refusals():
    with pytest.raises(ValueError, match="predictor must not be 'euler_maruyama' where clean data lies at t = -inf"):
        euler_maruyama(InterpolatedProcess(GaussianProcess([0.1, 0.2])), 2)
    with pytest.raises(TypeError, match="process must have a drift and a diffusion"):
        euler_maruyama(NCSNProcess(), 2)
