"""DPM-Solver with error-controlled steps: recorded runs of k-diffusion, and samples that do not see one another."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng
from fastdiff.processes import VPSDE
from fastdiff.samplers import DPMAdaptive
from tests.processes.golden import error, load
from tests.samplers.known import Gaussian
from tests.samplers.test_dpm_fast import recorded

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)
RUNS = {run["key"]: run for run in load("dpm_solver")["runs"] if run["key"].startswith("adaptive")}


class Counted:
    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, t):
        assert t.shape == (len(x),) and t.dtype is torch.float64
        self.calls += 1
        return self.denoise(x, t)


@pytest.mark.parametrize("key", RUNS)
def test_runs_are_those_of_k_diffusion(key):
    """One error over the batch, and as many calls."""
    arrays, process, data = recorded()
    solver, denoise = DPMAdaptive(process, norms="batch", **RUNS[key]["kwargs"]), Counted(data.denoiser(process))
    x = solver.run(denoise, arrays["x_init_unit"] * solver.start, lambda k: arrays["noise"][0])
    assert error(x, arrays[key]) < 1e-10
    assert denoise.calls == RUNS[key]["info"]["nfe"]


@pytest.mark.parametrize("key", [key for key in RUNS if not key.endswith("eta")])
def test_every_sample_is_that_of_k_diffusion_alone(key):
    arrays, process, data = recorded()
    solver = DPMAdaptive(process, **RUNS[key]["kwargs"])
    x = solver.run(data.denoiser(process), arrays["x_init_unit"] * solver.start, None)
    assert error(x, arrays[f"{key}.alone"]) < 1e-10
    assert error(x, arrays[key]) > 1e-8  # the batch's error makes another run


@pytest.mark.parametrize("key", ["adaptive.order2", "adaptive.tight", "adaptive.pid"])
def test_float32(key):
    """With the others' first step of 0.05, orders 2 and 3 differ by less than float32's rounding, and steps by more."""
    arrays, process, data = recorded()
    solver = DPMAdaptive(process, **RUNS[key]["kwargs"])
    x = solver.run(data.denoiser(process), (arrays["x_init_unit"] * solver.start).float(), None)
    assert x.dtype is torch.float32 and error(x, arrays[f"{key}.alone"]) < 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_does_not_depend_on_its_batch(eta):
    process, shape = VPSDE(), (6, 1, 4, 4)

    def run(ids):
        def draw(k):
            return ops.normal((len(ids), *shape[1:]), rng.make_rng(3, k), ids, stream=rng.STEP, dtype=torch.float64)

        z = ops.normal((len(ids), *shape[1:]), rng.make_rng(3), ids, dtype=torch.float64)
        z = z * (1 + ids.view(-1, 1, 1, 1))  # so that samples need different steps
        return DPMAdaptive(process, eta=eta, rtol=0.01).run(DATA.denoiser(process), z, draw)

    whole = run(torch.arange(6))
    for i in range(6):
        torch.testing.assert_close(run(torch.tensor([i])), whole[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_tolerances_buy_accuracy(order):
    process = VPSDE(t_min=0.3)  # where alpha is 0.6
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    alpha, sigma = (scale(torch.tensor([1.0, 0.3])) for scale in (process.alpha, process.sigma))
    deviation = ((alpha * STD) ** 2 + sigma**2).sqrt()
    wanted = alpha[1] * MEAN + (x - alpha[0] * MEAN) / deviation[0] * deviation[1]
    errors, calls = [], []
    for tolerance in (1e-2, 1e-5):
        denoise = Counted(DATA.denoiser(process))
        solver = DPMAdaptive(process, order=order, rtol=tolerance, atol=tolerance)
        errors.append((solver.run(denoise, x, None) - wanted).abs().max().item())
        calls.append(denoise.calls)
    assert errors[1] < errors[0] / 10 and errors[1] < 1e-3 and calls[1] > calls[0]


@pytest.mark.parametrize("process", [VPSDE(), VPSDE(t_min=0.3), GaussianProcess(schedules.linear(1000))])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_moments_on_gaussian_data(process, eta):
    """Within 3 standard errors of the marginal at t_min and the tolerance's own error."""
    solver = DPMAdaptive(process, eta=eta, rtol=1e-3, atol=1e-3)
    shape, ids = (64, 1, 16, 16), torch.arange(64)
    x_T = ops.normal(shape, rng.make_rng(1), ids)
    samples = solver.run(
        DATA.denoiser(solver.process), x_T, lambda k: ops.normal(shape, rng.make_rng(1, k), ids, stream=rng.STEP)
    ).double()
    n, t = samples.numel(), solver.process.t_min
    alpha, sigma = solver.process.alpha(t).item(), solver.process.sigma(t).item()
    variance = (alpha * STD) ** 2 + sigma**2
    assert abs(samples.mean().item() - alpha * MEAN) < 3 * (variance / n) ** 0.5 + 2e-3
    assert abs(samples.var().item() / variance - 1) < 3 * (2 / n) ** 0.5 + 0.01


def test_denoise_clip_and_progress():
    process, x, seen = VPSDE(), torch.full((2, 1, 2, 2), 3.0), []
    denoise = DATA.denoiser(process)
    end = DPMAdaptive(process).run(denoise, x, None, seen.append)
    assert seen == sorted(seen) and seen[-1] == 1
    denoised = DPMAdaptive(process, denoise=True).run(denoise, x, None)
    torch.testing.assert_close(denoised, denoise(end, torch.full((2,), process.t_min)))
    assert DPMAdaptive(process, clip=0.5, denoise=True).run(denoise, x, None).max() <= 0.5 < denoised.max()
    assert torch.equal(x, torch.full_like(x, 3.0))


def test_an_output_that_is_not_finite_ends_the_run():
    with pytest.raises(RuntimeError, match="the error stayed too large for 20 steps; is the model's output finite"):
        DPMAdaptive(VPSDE(), max_steps=20).run(lambda x, t: x * torch.nan, torch.zeros(1, 1, 2, 2), None)


@pytest.mark.parametrize("timesteps, options, message", [
    (10, {}, "timesteps must be None where the solver chooses its own, got 10"),
    (None, {"order": 4}, "order must be 2 or 3, got 4"),
    (None, {"norms": "max"}, "norms must be sample or batch, got 'max'"),
    (None, {"rtol": 0}, "rtol must be positive, got 0"),
    (None, {"eta": 2}, r"eta must be in \[0, 1\], got 2"),
])  # fmt: skip
def test_refusals(timesteps, options, message):
    with pytest.raises(ValueError, match=message):
        DPMAdaptive(VPSDE(), timesteps, **options)
