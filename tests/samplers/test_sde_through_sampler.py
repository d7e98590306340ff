"""The loop runs what these solvers ask of it beside rows: coefficients from the state, and steps of their own."""

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.processes import VESDE, VPSDE, NCSNProcess
from fastdiff.processes.interpolated import LevelProcess, continuous
from fastdiff.samplers import AdaptiveFlow, DPMAdaptive, annealed_langevin, dpm_fast, predictor_corrector
from tests.processes.test_interpolated import Preconditioned
from tests.samplers.by_hand import sample
from tests.samplers.known import Gaussian

pytest.importorskip("fastdiff.samplers.run", reason="the loop has no rows that depend on the state")
DATA = Gaussian(0.3, 0.4)
SHAPE = (4, 2, 8, 8)


@pytest.mark.parametrize("process", [VPSDE(), VESDE()])
@pytest.mark.parametrize("norms", ["sample", "batch"])
def test_the_langevin_corrector(process, norms):
    sampler = Sampler(DATA.model(process), process, predictor_corrector, 12, clip=None, norms=norms)
    wanted = sample(sampler.plan, DATA.model(process), SHAPE, seed=3)
    torch.testing.assert_close(sampler.sample(SHAPE, seed=3), wanted, rtol=0, atol=2e-6)


def test_the_langevin_corrector_under_guidance():
    """The step is that of the guided score."""
    process, other = VPSDE(), Gaussian(-0.5, 0.3)

    def model(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 1, DATA.model(process)(x, t), other.model(process)(x, t))

    def guided(x, t):
        u, c = other.model(process)(x, t), DATA.model(process)(x, t)
        return u + 1.5 * (c - u)

    from fastdiff.samplers import ClassifierFree

    guidance = ClassifierFree(1.5, uncond=torch.zeros(4, dtype=torch.int64))
    sampler = Sampler(model, process, predictor_corrector, 12, clip=None, guidance=guidance)
    samples = sampler.sample(SHAPE, seed=3, condition=torch.ones(4, dtype=torch.int64))
    wanted = sample(predictor_corrector(process, 12), guided, SHAPE, seed=3)
    torch.testing.assert_close(samples, wanted, rtol=0, atol=2e-5)


def test_annealed_langevin_and_dpm_fast():
    for process, solver, steps in ((NCSNProcess(6), annealed_langevin, None), (VPSDE(), dpm_fast, 12)):
        sampler = Sampler(DATA.model(process), process, solver, steps, clip=None)
        wanted = sample(sampler.plan, DATA.model(process), SHAPE, seed=3)
        torch.testing.assert_close(sampler.sample(SHAPE, seed=3), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("process", [VPSDE(), VESDE(), GaussianProcess(schedules.linear(1000))])
@pytest.mark.parametrize("solver, options", [
    (DPMAdaptive, {}), (DPMAdaptive, {"eta": 0.5}), (AdaptiveFlow, {"rtol": 1e-4, "atol": 1e-4}),
])  # fmt: skip
def test_adaptive_solvers(process, solver, options):
    """The same run by hand: initial noise, and that of the k-th attempted step."""
    known, ids = continuous(process), torch.arange(len(SHAPE))
    sampler = Sampler(DATA.model(known), process, solver, clip=None, **options)
    alone = solver(process, **options)

    def denoise(x, t):
        return known.predict_x0(x, t, DATA.model(known)(x, known.label(t).float()).to(x.dtype))

    x = alone.run(
        denoise,
        alone.start * ops.normal(SHAPE, rng.make_rng(3), ids),
        lambda k: ops.normal(SHAPE, rng.make_rng(3, k), ids, stream=rng.STEP),
    )
    torch.testing.assert_close(sampler.sample(SHAPE, seed=3), x, rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", [DPMAdaptive, AdaptiveFlow])
def test_adaptive_solvers_feed_the_scaled_state(solver):
    process = LevelProcess(Preconditioned())

    def model(fed, label):
        sigma = (4 * label.double()).exp().float().view(-1, 1, 1, 1)
        x = fed * (sigma**2 + 0.25).sqrt()
        p_x, p_m = (value.float().view(-1, 1, 1, 1) for value in process.to_x0(4 * label.double()))
        return (DATA.denoise(x, torch.ones(len(x)), sigma) - p_x * x) / p_m

    x_T = 5.0 * ops.normal(SHAPE, rng.make_rng(3), torch.arange(len(SHAPE)))
    wanted = solver(Preconditioned()).run(DATA.denoiser(process), x_T, None)
    samples = Sampler(model, Preconditioned(), solver, clip=None).sample(SHAPE, seed=3)
    torch.testing.assert_close(samples, wanted, rtol=0, atol=2e-3)
