"""DPM-Solver with a fixed number of calls: recorded runs of k-diffusion, order of convergence."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.processes import VESDE, VPSDE, SubVPSDE
from fastdiff.samplers import dpm_fast
from tests.processes.golden import error, load
from tests.samplers.by_hand import run
from tests.samplers.known import Gaussian, Mixture, assert_moments, moments

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)


def recorded():
    """Runs of k-diffusion 0.1.1.post1 on a mixture (its likelihoods: commit 4601bf0); its sigma_min is t_min here."""
    arrays = load("dpm_solver")
    process = VESDE(arrays["config"]["sigma_min"], arrays["config"]["sigma_max"], prediction="x0", t_min=1e-14)
    data = Mixture(*(arrays[f"mixture.{name}"] for name in ("weight", "mean", "std")))
    return arrays, process, data


RUNS = {run["key"]: run["kwargs"] for run in load("dpm_solver")["runs"] if run["key"].startswith("fast")}


@pytest.mark.parametrize("key", RUNS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_runs_are_those_of_k_diffusion(backend, key, dtype, tolerance):
    arrays, process, data = recorded()
    n, options = RUNS[key]["n"], {name: RUNS[key][name] for name in ("eta", "s_noise")}
    plan = dpm_fast(process, n, **options)
    assert len(plan) == n
    noisy = [row for row in range(n) if plan["std"][row] != 0]
    x = (arrays["x_init_unit"] * plan.start).to(dtype)
    reached = run(plan, data.model(process), x, lambda row: arrays["noise"][noisy.index(row)])
    assert error(reached, arrays[key]) < tolerance


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE, VESDE])
@pytest.mark.parametrize("remainder, order", [(1, 2), (2, 3)])
def test_orders_of_convergence(kind, remainder, order):
    """Steps of order 3 (local error h^4), and a last one of order 1 or 2, which weighs as much as all before."""
    process = kind(t_min=0.2)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).view(1, 1, 2, 4)
    alpha, sigma = (scale(torch.tensor([1.0, 0.2])) for scale in (process.alpha, process.sigma))
    deviation = ((alpha * STD) ** 2 + sigma**2).sqrt()
    wanted = alpha[1] * MEAN + x * deviation[1]
    errors = []
    for steps in (30, 60):
        plan = dpm_fast(process, 3 * steps + remainder)
        errors.append((run(plan, DATA.model(process), alpha[0] * MEAN + x * deviation[0], None) - wanted).abs().max())
    assert math.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.parametrize("process", [VPSDE(), VESDE(), GaussianProcess(schedules.linear(1000))])
@pytest.mark.parametrize("calls", [20, 80])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_moments_on_gaussian_data(process, calls, eta):
    from fastdiff.processes.interpolated import continuous

    known = continuous(process)
    sampler = Sampler(DATA.model(known), process, lambda *a, **k: dpm_fast(*a, **k, eta=eta), calls, clip=None)
    samples = sampler.sample((64, 1, 32, 32), seed=2)
    mean, variance = moments(sampler.plan, known, MEAN, STD)
    assert_moments(samples, mean, variance)
    assert mean == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE, VESDE])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_noise_keeps_the_marginals(kind, eta):
    """Where alpha is not 1 the noise is in units of x, not of x / alpha: mean and variance at t = 0.3."""
    process = kind(t_min=0.3)
    alpha, sigma = process.alpha(0.3).item(), process.sigma(0.3).item()
    mean, variance = moments(dpm_fast(process, 301, eta=eta), process, MEAN, STD)
    assert mean == pytest.approx(alpha * MEAN, abs=0.005 * sigma + 0.002)
    assert variance == pytest.approx((alpha * STD) ** 2 + sigma**2, rel=0.03)


def test_denoise_and_clip():
    plan = dpm_fast(VPSDE(), 4, clip=1.0, denoise=True)
    assert len(plan) == 5 and plan["bound"].tolist() == [1.0] * 5 and plan["c_0"][-1] == 1
    assert plan.time[-1].item() == pytest.approx(999 * 1e-3)
    assert len(dpm_fast(VPSDE())) == 30


@pytest.mark.parametrize("timesteps, options, message", [
    (0, {}, "timesteps must be the number of network calls, at least 1, got 0"),
    ([1.0, 0.5], {}, r"timesteps must be the number of network calls, at least 1, got \[1.0, 0.5\]"),
    (5, {"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
])  # fmt: skip
def test_refusals(timesteps, options, message):
    with pytest.raises(ValueError, match=message):
        dpm_fast(VPSDE(), timesteps, **options)
