"""The probability-flow ODE, by fixed and by error-controlled steps."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.processes import InterpolatedProcess, NCSNProcess
from fastdiff.samplers import AdaptiveFlow, probability_flow
from tests.processes.golden import error
from tests.processes.score_sde import PROCESSES, recorded
from tests.samplers.by_hand import run
from tests.samplers.known import Gaussian, Mixture, assert_moments, moments

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)
ALL = pytest.mark.parametrize("kind", PROCESSES)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def deviation(process, t):
    return ((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2).sqrt()


def exact(process, x, t):
    """Where the flow takes x from t_max: deviations from the mean grow as the marginal's does."""
    scaled = (x - process.alpha(process.t_max) * MEAN) / deviation(process, process.t_max)
    return process.alpha(t) * MEAN + scaled * deviation(process, t)


@ALL
@pytest.mark.parametrize("method", ORDERS)
def test_orders_of_convergence(kind, method):
    process, x = PROCESSES[kind](t_min=0.2), torch.linspace(-2, 2, 8, dtype=torch.float64).view(1, 1, 2, 4)
    x = x * deviation(process, process.t_max)
    errors = []
    for steps in (65, 129):
        plan = probability_flow(process, steps, method=method, denoise=False)
        assert len(plan) == (steps - 1) * {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
        reached = run(plan, DATA.model(process), x, None)
        errors.append((reached - exact(process, x, process.t_min)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("steps", [20, 80])
def test_moments_on_gaussian_data(method, steps):
    process = PROCESSES["subvp"]()

    def solver(process, timesteps, clip):
        return probability_flow(process, timesteps, clip=clip, method=method)

    sampler = Sampler(DATA.model(process), process, solver, steps, clip=None)
    samples = sampler.sample((64, 1, 32, 32), seed=2)
    mean, variance = moments(sampler.plan, process, MEAN, STD)
    assert_moments(samples, mean, variance)
    with pytest.raises(AssertionError):
        assert_moments(samples * 1.02, mean, variance)


def test_quantiles_of_a_mixture():
    """The flow of one dimension maps quantiles to quantiles: those of the prior to those of the data."""
    weight, mean, std = torch.tensor([[0.35, 0.65], [-0.8, 0.5], [0.25, 0.4]], dtype=torch.float64)
    process = PROCESSES["vp"](t_min=1e-4)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for data_process, steps in ((process, 400), (InterpolatedProcess(GaussianProcess(schedules.linear(1000))), 100)):
        plan = probability_flow(data_process, steps)
        x = run(plan, Mixture(weight, mean, std).model(data_process), z.view(1, 1, 1, 9), None).flatten()
        reached = (weight * torch.special.ndtr((x[:, None] - mean) / std)).sum(1)
        torch.testing.assert_close(reached, torch.special.ndtr(z), rtol=0, atol=2e-3)


def test_a_discrete_process_runs_at_fractional_timesteps():
    plan = probability_flow(GaussianProcess(schedules.linear(1000)), 5, method="midpoint")
    assert plan.time[0].item() == pytest.approx(999) and plan.time[-1].item() == pytest.approx(0, abs=1e-9)
    assert plan.time.dtype is torch.float64 and (plan.time % 1 > 0.01).any()


def test_clip_and_denoise():
    plan = probability_flow(PROCESSES["vp"](), 3, clip=1.0)
    assert plan["bound"].tolist() == [1.0] * 9 and (plan["c_x"][-1], plan["c_0"][-1]) == (0, 1)
    assert len(probability_flow(PROCESSES["vp"](), 3, denoise=False)) == 8


@pytest.mark.parametrize("make, kind, message", [
    (lambda: probability_flow(PROCESSES["vp"](), 3, method="rk3"), ValueError, "method must be one of euler, .*'rk3'"),
    (lambda: probability_flow(PROCESSES["vp"](), 1, denoise=False), ValueError, "timesteps must be at least 2 without"),
    (lambda: probability_flow(NCSNProcess(), 3), TypeError, "process must be a GaussianProcess, got NCSNProcess"),
    (lambda: AdaptiveFlow(PROCESSES["vp"](), 10), ValueError, "timesteps must be None where the solver chooses"),
    (lambda: AdaptiveFlow(PROCESSES["vp"](), method="rk4"), ValueError, "method must be one of RK45, .*, got 'rk4'"),
    (lambda: AdaptiveFlow(PROCESSES["vp"](), atol=0), ValueError, "atol must be positive, got 0"),
])  # fmt: skip
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# ---- Error-controlled ----


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ode_sampler_of_score_sde(kind, dtype):
    """From z to t = 1e-3 with RK45 at 1e-5, not denoised."""
    arrays, process, _, data = recorded(kind, t_min=1e-3)
    solver = AdaptiveFlow(process)
    x = solver.run(data.denoiser(process), arrays[f"{kind}.ode_sampler.z"].to(dtype))
    assert x.dtype is dtype and error(x, arrays[f"{kind}.ode_sampler.x"]) < 1e-4
    assert solver.start == pytest.approx(process.prior_std)


@pytest.mark.parametrize("method", ["RK45", "DOP853", "dopri5", "bosh3"])
def test_tolerances_hold(method):
    process, x = PROCESSES["vp"](), torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    wanted = exact(process, x, process.t_min)
    for tolerance in (1e-3, 1e-6):
        seen = []
        solver = AdaptiveFlow(process, method=method, rtol=tolerance, atol=tolerance)
        reached = solver.run(DATA.denoiser(process), x, progress=seen.append)
        assert (reached - wanted).abs().max() < 50 * tolerance
        assert seen[0] == 0 and seen[-1] > 0.99 and 0 <= min(seen) <= max(seen) <= 1 + 1e-9


def test_denoise_and_clip_of_the_adaptive_flow():
    process, x = PROCESSES["vp"](), torch.full((1, 1, 2, 2), 3.0)
    denoise = DATA.denoiser(process)
    end = AdaptiveFlow(process).run(denoise, x)
    torch.testing.assert_close(
        AdaptiveFlow(process, denoise=True).run(denoise, x), denoise(end, torch.tensor([process.t_min]))
    )
    assert AdaptiveFlow(process, clip=0.5, denoise=True).run(denoise, x).max() <= 0.5 < end.max()
