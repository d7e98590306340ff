"""NCSN's annealed Langevin dynamics."""

import math

import pytest
import torch

from fastdiff import Sampler
from fastdiff.processes import VESDE, VPSDE, NCSNProcess
from fastdiff.samplers import annealed_langevin
from fastdiff.samplers.langevin import best_step_size
from tests.samplers.by_hand import run
from tests.samplers.known import Gaussian, assert_moments, moments

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)


def by_the_papers(process, model, x, noise, steps_each, step_size, version, denoise):
    """Song and Ermon 2019, algorithm 1 (version 1), and 2020, algorithm 1 with the last denoising step (version 2)."""
    draws, last = iter(noise), process.sigma[-1]
    for t, sigma in enumerate(process.sigma):
        a = step_size * sigma**2 / last**2
        for _ in range(steps_each):
            score, z = model(x, torch.full((len(x),), t)), next(draws)
            x = x + a / 2 * score + a.sqrt() * z if version == 1 else x + a * score + (2 * a).sqrt() * z
    return x + last**2 * model(x, torch.full((len(x),), t)) if denoise else x


@pytest.mark.parametrize("version, denoise", [(1, None), (1, True), (2, None), (2, False)])
@pytest.mark.parametrize("prediction", ["score", "eps"])
def test_runs_are_those_of_the_papers(backend, version, denoise, prediction):
    """NCSN ends without, NCSNv2 with a denoising step, and NCSN's step size is halved where the score has it."""
    process = NCSNProcess(5, prediction=prediction)
    generator = torch.Generator().manual_seed(1)
    x, *noise = torch.randn(17, 2, 1, 3, 4, dtype=torch.float64, generator=generator)
    options = {"steps_each": 3, "step_size": 3e-5, "version": version, "denoise": denoise}
    plan = annealed_langevin(process, **options)
    score = DATA.model(NCSNProcess(5))
    options["denoise"] = version == 2 if denoise is None else denoise
    wanted = by_the_papers(process, score, x, noise, **options)
    assert plan.start == pytest.approx(1)
    stepped = run(plan, DATA.model(process), x, lambda row: noise[row])
    torch.testing.assert_close(stepped, wanted, rtol=1e-10, atol=1e-10)
    assert plan.time[:15].tolist() == [t for t in range(5) for _ in range(3)]


def test_defaults_are_those_of_the_papers():
    ncsn = annealed_langevin(NCSNProcess(), version=1)
    assert len(ncsn) == 1000 and (ncsn["std"] > 0).all()
    torch.testing.assert_close(ncsn["std"][-1].item(), math.sqrt(2e-5))
    assert len(annealed_langevin(NCSNProcess(232, 50.0, 0.01))) == 232 * 5 + 1


def test_the_best_step_size_is_that_of_the_paper():
    """Song and Ermon 2020, table 1: 6.2e-6 for CIFAR-10."""
    assert best_step_size(NCSNProcess(232, 50.0, 0.01).sigma, 5) == pytest.approx(6.2e-6, rel=0.02)


@pytest.mark.parametrize("steps_each", [1, 5])
def test_the_best_step_size_hands_the_next_level_its_sigma(steps_each):
    """From a deviation of one level, steps at the next one (far above the data) come nearest to its own."""
    process = NCSNProcess(60, 50.0, 5.0)

    def distance(step_size):
        e, variance = step_size / process.sigma[-1] ** 2, (process.sigma[0] / process.sigma[1]) ** 2
        for _ in range(steps_each):  # x' = x - e x + sqrt(2 e) z, in units of sigma
            variance = (1 - e) ** 2 * variance + 2 * e
        return abs(variance - 1)

    best = best_step_size(process.sigma, steps_each)
    assert distance(best) < min(distance(0.95 * best), distance(1.05 * best))


@pytest.mark.parametrize("levels", [20, 80])
def test_moments_on_gaussian_data(levels):
    process = NCSNProcess(levels, 5.0, 0.05)
    sampler = Sampler(DATA.model(process), process, annealed_langevin, clip=None)
    samples = sampler.sample((64, 1, 32, 32), seed=2)
    assert_moments(samples, *moments(sampler.plan, process, MEAN, STD))


def test_one_percent_more_noise_is_noticed():
    process = NCSNProcess(20, 5.0, 0.05)
    sampler = Sampler(DATA.model(process), process, annealed_langevin, clip=None)
    samples = sampler.sample((256, 1, 32, 32), seed=1)
    with pytest.raises(AssertionError):
        assert_moments(samples, *moments(sampler.plan, process, MEAN, STD, noise=1.01))


def test_enough_levels_reach_the_data():
    process = NCSNProcess(200, 5.0, 0.01)
    mean, variance = moments(annealed_langevin(process, steps_each=20), process, MEAN, STD)
    assert mean == pytest.approx(MEAN, abs=0.01) and math.sqrt(variance) == pytest.approx(
        STD, rel=0.03
    )  # a chain of finite steps is too wide


def test_a_ve_sde_runs_as_well():
    plan = annealed_langevin(VESDE(0.01, 5.0), 7, steps_each=2)
    assert len(plan) == 15 and plan.time[0].item() == pytest.approx(5)


def test_clip_and_fewer_levels():
    plan = annealed_langevin(NCSNProcess(10), [0, 9], clip=1.0, steps_each=1)
    assert plan.time.tolist() == [0, 9, 9] and plan["bound"].tolist() == [1.0] * 3
    assert (plan["c_0"] > 0).all() and (plan["c_m"] == 0).all()


@pytest.mark.parametrize("process, options, message", [
    (VPSDE(), {}, r"process must have alpha = 1 \(NCSNProcess, VESDE\), got VPSDE"),
    (NCSNProcess(), {"version": 3}, "version must be 1 or 2, got 3"),
    (NCSNProcess(), {"steps_each": 0}, "steps_each must be an int of at least 1, got 0"),
    (NCSNProcess(), {"step_size": 0.0}, "step_size must be positive, got 0.0"),
])  # fmt: skip
def test_refusals(process, options, message):
    with pytest.raises(ValueError, match=message):
        annealed_langevin(process, **options)
