"""What the loop offers, with every solver of the library."""

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.capture import Capture
from fastdiff.samplers import SOLVERS, Classifier, ClassifierFree, DynamicThreshold, sampler
from tests.cuda_graphs import Cuda

SHAPE = (3, 2, 4, 4)
TABLES = [name for name in SOLVERS if name != "ddim_reverse"]


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
    assert len(steps) <= len(full) / 2 + 1 and steps[-1].x.isfinite().all()
    weak = sampler_.sample(x_start=x_start, strength=0.01)
    assert (weak - x_start).abs().mean() < (sampler_.sample(SHAPE) - x_start).abs().mean()


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
