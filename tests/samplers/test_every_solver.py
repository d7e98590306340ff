"""What the loop offers, with every solver of the library."""

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.capture import Capture
from fastdiff.processes import VESDE, VPSDE, NCSNProcess, SigmaProcess, SigmaView, SubVPSDE
from fastdiff.samplers import Classifier, ClassifierFree, DynamicThreshold, Plan, sampler
from fastdiff.samplers.solvers import OF_NODES, OF_SDES, OWN_STEPS
from tests.cuda_graphs import Cuda
from tests.samplers.known import Gaussian

SHAPE = (3, 2, 4, 4)
TABLES = [name for name in OF_NODES if name != "ddim_reverse"]


def model(x, t, y=None):
    return 0.3 * torch.tanh(x) + (0 if y is None else 0.1 * y.view(-1, 1, 1, 1).float())


def make(name, **options):
    return Sampler(model, GaussianProcess(schedules.linear(100)), name, 8, **options)


@pytest.mark.parametrize("name", TABLES)
def test_a_replayed_run_has_the_bits_of_an_eager_one(name, monkeypatch):
    expected = make(name, guidance=ClassifierFree(3.0, 0)).sample(SHAPE, seed=5, condition=[1, 2, 3])
    monkeypatch.setattr(sampler, "_has_graphs", lambda device: True)
    monkeypatch.setattr(sampler, "Capture", lambda *a, **k: Capture(*a, **{**k, "required": True}, cuda=Cuda()))
    assert torch.equal(make(name, guidance=ClassifierFree(3.0, 0)).sample(SHAPE, seed=5, condition=[1, 2, 3]), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("name", TABLES)
def test_what_is_known_stays(name):
    known, mask = torch.rand(1, 2, 4, 4) * 2 - 1, torch.eye(4).view(1, 1, 4, 4)
    samples = make(name).sample(SHAPE, inpaint=(known, mask))
    keep = (mask == 0).expand(SHAPE)
    assert torch.equal(samples[keep], known.expand(SHAPE)[keep]) and samples.isfinite().all()


@pytest.mark.parametrize("name", TABLES)
def test_from_an_image(name):
    x_start = torch.rand(SHAPE) * 2 - 1
    full, sampler_ = make(name).plan.time, make(name)
    steps = list(sampler_.stream(x_start=x_start, strength=0.5))
    assert steps[0].time <= full[len(full) // 2].item() + 1e-9
    assert len(full) / 2 - 2 <= len(steps) <= len(full) / 2 + 1 and steps[-1].x.isfinite().all()
    weak = sampler_.sample(x_start=x_start, strength=0.01)
    assert (weak - x_start).abs().mean() < (sampler_.sample(SHAPE) - x_start).abs().mean()


VIEWED = SigmaView(GaussianProcess(schedules.linear(100)))


@pytest.mark.parametrize("process", [VPSDE(), SigmaProcess(), VIEWED], ids=["VPSDE", "SigmaProcess", "SigmaView"])
@pytest.mark.parametrize("name", ["euler", "dpm_fast"])
def test_numbers_of_numpy(name, process):
    plan = Sampler(model, process, name, np.int64(4)).plan
    assert torch.equal(plan.rows, Sampler(model, process, name, 4).plan.rows)


@pytest.mark.parametrize("name", TABLES)
def test_dynamic_thresholds(name):
    assert make(name, clip=DynamicThreshold(0.9)).sample(SHAPE).isfinite().all()


@pytest.mark.parametrize("name", TABLES)
def test_classifiers(name):
    """A network that always says x0 = 0.3, and a gradient that moves it by 0.2: as if it said 0.5."""
    process = GaussianProcess(schedules.linear(100), prediction="x0")
    pull = Classifier(lambda x, t: signal(process, t).view(-1, 1, 1, 1).float().expand_as(x), 0.2)
    samples = Sampler(lambda x, t: torch.full_like(x, 0.3), process, name, 8, guidance=pull).sample(SHAPE)
    expected = Sampler(lambda x, t: torch.full_like(x, 0.5), process, name, 8).sample(SHAPE)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-3)


def signal(process, t):
    """alpha / sigma^2 at what the network is fed: such a gradient moves every estimate x0 by the scale."""
    level = torch.from_numpy(np.interp(t.double(), range(100), process.noise_level.log())).exp()
    return (1 + level**2).sqrt() / level**2


def test_inversion_then_generation_gives_the_images_back():
    process, images = GaussianProcess(schedules.cosine(1000)), torch.rand(SHAPE) - 0.5

    def exact(x, t):  # for data of deviation 0.5
        alpha, sigma = (table[t[0]].float() for table in (process.alpha, process.sigma))
        return sigma * x / (alpha**2 / 4 + sigma**2)

    errors = []
    for steps in (50, 100):
        noise = Sampler(exact, process, "ddim_reverse", steps, clip=None).sample(x=images)
        errors.append((Sampler(exact, process, "ddim", steps, clip=None).sample(x=noise) - images).abs().max())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.05


# ---- Every solver on every process ----

DATA = Gaussian(0.3, 0.4)
PROCESSES = {
    "vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "ncsn": NCSNProcess(60, 20.0),
    "score": VPSDE(prediction="score"), "discrete": GaussianProcess(schedules.linear(1000)),
    "sigma": SigmaProcess("x0", sigma_min=0.01, sigma_max=20.0),
}  # fmt: skip
SOLVERS = (*TABLES, *OF_SDES, *OWN_STEPS)
# At 40 steps even in t the last one is far longer in log SNR than those it extrapolates: deviations are 0.5 to 0.9.
LONG = ("dpmpp_2m_sde", "dpmpp_3m_sde")
FINER = {"dpm_adaptive": {"rtol": 0.005, "atol": 0.001}}
# Solvers of one process or of a few, and what they say of the others.
ONLY = {
    "ddpm": ({"discrete"}, TypeError, "process must be a GaussianProcess for ddpm"),
    "annealed_langevin": ({"ve", "ncsn", "sigma"}, ValueError, "process must have alpha = 1"),
    "euler_maruyama": ({"vp", "subvp", "ve", "score"}, TypeError, "process must have a drift and a diffusion"),
    "predictor_corrector": (PROCESSES.keys() - {"subvp"}, ValueError, "corrector must be None where variance is not"),
    **dict.fromkeys(
        ("dpm_2", "dpm_2_ancestral", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_sde"),
        (PROCESSES.keys() - {"ncsn"}, TypeError, "process must have a method through or time_at for this solver"),
    ),
    **dict.fromkeys(
        ("dpm_fast", "ode", "dpm_adaptive", "probability_flow"),
        (PROCESSES.keys() - {"ncsn"}, TypeError, "process must be a GaussianProcess, got NCSNProcess"),
    ),
}


def denoising(kind, process):
    if kind == "sigma":
        return lambda x, sigma: DATA.denoise(x.double(), torch.ones(len(x)), sigma.double()).to(x.dtype)
    if kind == "discrete":
        def eps(x, t):
            level = torch.from_numpy(np.interp(t.double(), range(1000), process.noise_level.log())).exp()
            alpha = (1 + level**2).rsqrt().view(-1, 1, 1, 1)
            x, level = x.double(), level.view(-1, 1, 1, 1)
            x0 = DATA.denoise(x, alpha.flatten(), (alpha * level).flatten())
            return ((x - alpha * x0) / (alpha * level)).float()
        return eps
    return DATA.model(process)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_on_every_process(name, kind):
    """40 steps (250) give the data's mean and deviation back, or the solver says why this process is not for it."""
    process, (kinds, refusal, message) = PROCESSES[kind], ONLY.get(name, (PROCESSES, None, None))
    steps = None if name in OWN_STEPS or kind == "ncsn" else 250 if name in LONG else 40
    options = FINER.get(name, {})
    if kind not in kinds:
        with pytest.raises(refusal, match=message):
            Sampler(denoising(kind, process), process, name, steps, clip=None)
        return
    sampler_ = Sampler(denoising(kind, process), process, name, steps, clip=None, **options)
    assert isinstance(sampler_.plan, Plan) == (name not in OWN_STEPS)
    samples = sampler_.sample((8, 1, 16, 16), seed=1)
    assert samples.mean().item() == pytest.approx(0.3, abs=0.06)
    assert samples.std().item() == pytest.approx(0.4, rel=0.2)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_what_the_loop_does_for_solvers_that_choose_their_steps(name):
    """Guidance, thresholds, a state to start from, micro-batches that say nothing to one another."""
    process = VPSDE()

    def model(x, t, y=None):
        return DATA.model(process)(x, t) + (0 if y is None else 0.1 * y.view(-1, 1, 1, 1).float())

    def make(**options):
        return Sampler(model, process, name, rtol=1e-4, atol=1e-4, **{"clip": None, **options})

    plain = make().sample((4, 1, 4, 4), seed=2)
    assert (make().sample(sample_ids=[2], n=(1, 1, 4, 4), seed=2) - plain[2:3]).abs().max() < 2e-3
    assert (make().sample((4, 1, 4, 4), seed=2, batch_size=3) - plain).abs().max() < 2e-3
    guided = make(guidance=ClassifierFree(3.0, 0)).sample((4, 1, 4, 4), seed=2, condition=[1, 1, 0, 0])
    assert (guided[:2] - plain[:2]).abs().min() > 1e-2 and (guided[2:] - plain[2:]).abs().max() < 2e-3
    assert make(clip=0.2, denoise=True).sample((4, 1, 4, 4), seed=2).abs().max() <= 0.2
    assert make(clip=DynamicThreshold(0.9)).sample((4, 1, 4, 4), seed=2).isfinite().all()
    with pytest.raises(ValueError, match="callback must be None for a solver that chooses its own steps"):
        make().sample((1, 1, 4, 4), callback=print)
