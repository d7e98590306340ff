"""Predictor-corrector sampling: recorded steps and runs of score_sde, and data whose score is known."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops.rows import COLUMNS
from fastdiff.processes import VESDE, VPSDE, InterpolatedProcess, NCSNProcess, SubVPSDE
from fastdiff.samplers import Plan, predictor_corrector
from tests.processes.golden import error
from tests.processes.score_sde import PROCESSES, recorded
from tests.samplers.by_hand import run, sample
from tests.samplers.known import Gaussian, assert_moments, moments

MEAN, STD = 0.3, 0.4
DATA = Gaussian(MEAN, STD)
DTYPES = {"f64": torch.float64, "f32": torch.float32}
PRECISIONS = pytest.mark.parametrize("precision, tolerance", [("f64", 1e-10), ("f32", 2e-5)])


def predictor_named(name, kind):
    """score_sde's predictors: its ancestral one keeps the transition's noise for VP, the posterior's for VE."""
    return "ancestral_large" if name.startswith("ancestral") and kind == "vp" else name.removesuffix("_sampling")


@pytest.mark.parametrize("kind, name", [
    ("vp", "reverse_diffusion"), ("vp", "ancestral"), ("vp", "reverse_diffusion_pf"),
    ("subvp", "reverse_diffusion"), ("subvp", "reverse_diffusion_pf"),
    ("ve", "reverse_diffusion"), ("ve", "ancestral"), ("ve", "reverse_diffusion_pf"),
])  # fmt: skip
@PRECISIONS
def test_predictors_are_the_recorded_ones(backend, kind, name, precision, tolerance):
    arrays, process, x, data = recorded(kind)
    x, flow = x.to(DTYPES[precision]), name.endswith("_pf")
    options = {"predictor": predictor_named(name.removesuffix("_pf"), kind), "corrector": None, "levels": 1000}
    for b, t in enumerate(arrays["t"]):
        for denoise, what in ((False, "x"), (True, "x_mean")):
            plan = predictor_corrector(process, [t], **options, probability_flow=flow, denoise=denoise)
            stepped = run(plan, data.model(process), x[b : b + 1], lambda row, b=b: arrays["noise"][row, b : b + 1])
            wanted = arrays[f"{kind}.{precision}.predictor.{name}.{what}"][b : b + 1]
            assert error(stepped, wanted) < tolerance


@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("n", [1, 3])
@PRECISIONS
def test_correctors_are_the_recorded_ones(backend, kind, corrector, n, precision, tolerance):
    """Every sample has a time of its own and yet norms are averaged over the batch: rows of one plan per sample."""
    arrays, process, x, data = recorded(kind)
    dtype, model = DTYPES[precision], data.model(process)
    x = x.to(dtype)
    options = {"predictor": None, "corrector": corrector, "corrector_steps": n, "levels": 1000, "norms": "batch"}
    plans = [predictor_corrector(process, [t], **options) for t in arrays["t"]]
    together = Plan(
        torch.cat([plan.time for plan in plans]),
        adjust=plans[0].adjust,
        adjusted=plans[0].adjusted * len(plans),
        **{name: torch.cat([plan[name] for plan in plans]) for name in COLUMNS},
    )
    for step in range(n):
        place = torch.arange(len(x)) * n + step
        output, z = model(x, together.time[place]), arrays["noise"][step].to(dtype)
        rows = together.table(dtype=dtype)[place]
        if corrector == "langevin":
            together.adjust(rows, step, x, output, z)
        x = ops.reverse_step(x, output, rows, torch.arange(len(x)), noise=z)
    assert error(x, arrays[f"{kind}.{precision}.corrector.{corrector}.n{n}.x"]) < tolerance


RUNS = [key.split(".") for key in recorded() if ".f64.pc." in key]


@pytest.mark.parametrize("kind, precision, predictor, corrector, denoise", [
    (kind, precision, predictor, corrector, denoise)
    for kind, _, _, predictor, corrector, denoise in RUNS for precision in DTYPES
])  # fmt: skip
def test_runs_are_the_recorded_ones(backend, kind, precision, predictor, corrector, denoise):
    """The corrector goes first, both at the same time, and noise is used in that order; the last step is 1 / N too."""
    arrays, process, _, data = recorded(kind, t_min=recorded()["config"]["pc_eps"][kind])
    plan = predictor_corrector(
        process,
        arrays["config"]["N_pc"],
        predictor=predictor_named(predictor, kind),
        corrector=None if corrector == "None" else corrector,
        snr=arrays["config"]["snr"],
        norms="batch",
        levels=arrays["config"]["N_pc"],
        denoise=denoise == "denoise1",
    )
    assert len(plan) == arrays[f"{kind}.pc.{predictor}.{corrector}.noises_used"]
    x_T = plan.start * arrays["x"].to(DTYPES[precision])
    x = run(plan, data.model(process), x_T, lambda row: arrays["noise"][row])
    wanted = arrays[f"{kind}.{precision}.pc.{predictor}.{corrector}.{denoise}"]
    assert error(x, wanted) < {"f64": 1e-10, "f32": 1e-4}[precision]


SOLVERS = {
    "vp reverse_diffusion": ("vp", {"corrector": None}),
    "vp ancestral": ("vp", {"predictor": "ancestral", "corrector": None}),
    "subvp reverse_diffusion": ("subvp", {"corrector": None}),
    "subvp ancestral": ("subvp", {"predictor": "ancestral", "corrector": None}),
    "ve reverse_diffusion": ("ve", {"corrector": None}),
    "ve ancestral_large": ("ve", {"predictor": "ancestral_large", "corrector": None}),
    "vp flow": ("vp", {"corrector": None, "probability_flow": True}),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [20, 80])
def test_moments_on_gaussian_data(name, steps):
    kind, options = SOLVERS[name]
    process = PROCESSES[kind]()
    sampler = Sampler(
        DATA.model(process), process, lambda *a, **k: predictor_corrector(*a, **k, **options), steps, clip=None
    )
    assert_moments(sampler.sample((64, 1, 32, 32), seed=1), *moments(sampler.plan, process, MEAN, STD))


CORRECTED = {
    "vp langevin": ("vp", {}),
    "ve langevin": ("ve", {}),
    "ve two steps of langevin": ("ve", {"corrector_steps": 2, "predictor": "ancestral"}),
    "vp ald": ("vp", {"corrector": "ald"}),
    "ve ald": ("ve", {"corrector": "ald"}),
}


@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.parametrize("steps", [20, 80])
def test_moments_with_a_corrector(name, steps):
    """Norms of 4096 elements scatter by 1%, which moves the moments by less than their standard error."""
    kind, options = CORRECTED[name]
    process = PROCESSES[kind]()
    plan = predictor_corrector(process, steps, **options)
    samples = sample(plan, DATA.model(process), (16, 1, 64, 64), seed=2)
    assert_moments(samples, *moments(plan, process, MEAN, STD))


def test_one_percent_more_noise_is_noticed():
    process = VESDE()
    plan = predictor_corrector(process, 80)
    samples = sample(plan, DATA.model(process), (64, 1, 64, 64), seed=1)
    assert_moments(samples, *moments(plan, process, MEAN, STD))
    with pytest.raises(AssertionError):
        assert_moments(samples, *moments(plan, process, MEAN, STD, noise=1.01))


def test_enough_steps_reach_the_data():
    for kind, options in [*SOLVERS.values(), *CORRECTED.values()]:
        process = PROCESSES[kind](t_min=1e-3)
        mean, variance = moments(predictor_corrector(process, 1000, **options), process, MEAN, STD)
        assert mean == pytest.approx(MEAN, abs=0.005) and math.sqrt(variance) == pytest.approx(STD, rel=0.03)


def test_covariance_of_two_channels():
    """Channels of correlation 0.6: independent in the basis of their sum and difference, whose moments are known."""
    process, axes = VPSDE(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    means, deviations = (0.2, -0.1), (STD * math.sqrt(1.6), STD * math.sqrt(0.4))
    known = Gaussian(means, deviations).model(process)

    def model(x, label):
        turned = torch.einsum("ij,bjhw->bihw", axes.to(x.dtype), x)
        return torch.einsum("ji,bjhw->bihw", axes.to(x.dtype), known(turned, label))

    for steps in (20, 80):
        plan = predictor_corrector(process, steps, corrector="ald")
        samples = sample(plan, model, (16, 2, 48, 48), seed=3)
        turned = torch.einsum("ij,bjhw->ibhw", axes, samples).flatten(1).double()
        for values, mean, std in zip(turned, means, deviations, strict=True):
            assert_moments(values, *moments(plan, process, mean, std))
        covariance = torch.cov(turned)
        assert abs(covariance[0, 1]) < 3 * (covariance[0, 0] * covariance[1, 1] / turned.shape[1]).sqrt()


def test_per_sample_norms_do_not_depend_on_the_batch():
    process = VESDE()
    plan, model = predictor_corrector(process, 10), DATA.model(process)
    whole = sample(plan, model, (4, 1, 8, 8))
    assert torch.equal(sample(plan, model, (2, 1, 8, 8)), whole[:2])
    averaged = predictor_corrector(process, 10, norms="batch")
    assert not torch.equal(sample(averaged, model, (2, 1, 8, 8)), sample(averaged, model, (4, 1, 8, 8))[:2])


def test_the_langevin_step_reads_the_guided_output():
    """Two halves with weight w give the row of their combination; the variance channels are not read."""
    plan = predictor_corrector(VPSDE(), 3).replace(w=2.5)
    generator = torch.Generator().manual_seed(1)
    x, z, u, c = torch.randn(4, 2, 3, 4, 4, generator=generator).unbind()
    given, halves, learned = (plan.table()[0].repeat(2, 1) for _ in range(3))
    plan.adjust(given, 0, x, u + 2.5 * (c - u), z)
    plan.adjust(halves, 0, x, torch.cat([u, c]), z)
    torch.testing.assert_close(halves, given)
    plan.adjust(learned, 0, x, torch.cat([u + 2.5 * (c - u), z], dim=1), z)
    torch.testing.assert_close(learned, given)


def test_the_langevin_step_is_that_of_the_clipped_estimate():
    process = VESDE(prediction="x0")
    plan = predictor_corrector(process, 3, clip=1.0)
    x, z = torch.full((1, 1, 2, 2), 30.0), torch.ones(1, 1, 2, 2)
    clipped, inside = (plan.table()[0].repeat(1, 1) for _ in range(2))
    plan.adjust(clipped, 0, x, torch.full_like(x, 5.0), z)
    plan.adjust(inside, 0, x, torch.full_like(x, 1.0), z)
    assert torch.equal(clipped, inside)


def test_rows_of_a_corrector_and_its_predictor():
    plan = predictor_corrector(VESDE(), 4, corrector_steps=2)
    assert len(plan) == 12 and plan.adjusted == (True, True, False) * 4 and plan.start == pytest.approx(50)
    assert plan.time.view(4, 3).unique(dim=1).shape == (4, 1)
    # The exact transition from clean data: x' = x + sigma^2 * score = x0.
    assert plan["std"][-1] == 0 and (plan["c_x"][-1], plan["c_m"][-1]) == (1, pytest.approx(plan["p_m"][-1]))
    clipped = predictor_corrector(VESDE(), 4, clip=1.0)
    assert (clipped["c_x"][-1], clipped["c_0"][-1]) == (pytest.approx(0, abs=1e-9), pytest.approx(1))


def test_other_processes_give_their_nodes():
    """NCSN's levels are score_sde's discrete VE; a discrete VP process in continuous time has no levels."""
    plan = predictor_corrector(NCSNProcess(6, 8.0, 0.25), corrector=None)
    sigma = torch.cat([NCSNProcess(6, 8.0, 0.25).sigma, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(plan["std"][:-1], (sigma[:-1] ** 2 - sigma[1:] ** 2).sqrt()[:-1])
    process = InterpolatedProcess(GaussianProcess(schedules.linear(1000)))
    mean, variance = moments(predictor_corrector(process, 300, predictor="ancestral"), process, MEAN, STD)
    assert mean == pytest.approx(MEAN, abs=0.01) and math.sqrt(variance) == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("levels", [None, 10])
def test_the_langevin_corrector_is_undefined_for_sub_vp(corrector, levels):
    with pytest.raises(
        ValueError, match="corrector must be None where variance is not preserved and alpha not 1, got Sub"
    ):
        predictor_corrector(SubVPSDE(), 10, corrector=corrector, levels=levels)


@pytest.mark.parametrize("options, kind, message", [
    ({"predictor": "heun"}, ValueError, "predictor must be one of euler_maruyama, .* or None, got 'heun'"),
    ({"corrector": "mala"}, ValueError, "corrector must be one of langevin, ald, or None, got 'mala'"),
    ({"predictor": None, "corrector": None}, ValueError, "predictor must not be None where corrector is"),
    ({"snr": 0}, ValueError, "snr must be positive, got 0"),
    ({"corrector_steps": 0}, ValueError, "corrector_steps must be an int of at least 1, got 0"),
    ({"norms": "max"}, ValueError, "norms must be one of sample, batch, got 'max'"),
    ({"predictor": "ancestral", "probability_flow": True}, ValueError, "predictor must be one of euler_maruyama, reve"),
    ({"levels": 20}, ValueError, "N must be greater than beta_max = 20, got 20"),
])  # fmt: skip
def test_refusals(options, kind, message):
    with pytest.raises(kind, match=message):
        predictor_corrector(VPSDE(), 10, **options)


def test_levels_need_a_chain():
    with pytest.raises(
        TypeError, match="process must be VPSDE, SubVPSDE or VESDE where levels is given, got NCSNProcess"
    ):
        predictor_corrector(NCSNProcess(), levels=10)
