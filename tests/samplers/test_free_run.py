"""Solvers that choose their own steps, in place of a plan."""

import pytest
import torch

from fastdiff import Sampler, ops
from fastdiff.ops import rng
from fastdiff.samplers import Classifier, ClassifierFree, DynamicThreshold

SHAPE = (3, 2, 4, 4)


class Exploding:
    """alpha = 1, sigma = t; the network is fed x / 2 and t / 10 and predicts the noise."""

    def c_in(self, t):
        return torch.full_like(t, 0.5)

    def label(self, t):
        return t / 10

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t

    def predict_x0(self, x, t, output):
        return x - t.to(x.dtype).view(-1, 1, 1, 1) * output


class Halving:
    """Halves the noise of each sample until it is small: t' = t / 2, x' = x0 + (x - x0) / 2 + 0.1 z."""

    start = 8.0

    def __init__(self, process, timesteps=None, *, clip=1.0, least=0.5):
        self.process, self.clip, self.least = process, clip, least

    def run(self, denoise, x, draw, progress=None):
        t, k = torch.full((len(x),), self.start, dtype=torch.float64), 0
        while t[0] > self.least:
            x0 = denoise(x, t)
            if self.clip is not None:
                x0 = x0.clamp(-self.clip, self.clip)
            x, t = (x + x0) / 2 + 0.1 * draw(k), t / 2
            k += 1
            progress(k / 4)
        return x


def model(x, t, y=None):
    return 0.1 * x + t.view(-1, 1, 1, 1) + (0 if y is None else y.view(-1, 1, 1, 1) * torch.cos(x))


def by_hand(x0_of):
    ids = torch.arange(SHAPE[0])
    x = 8 * ops.normal(SHAPE, rng.make_rng(4), ids)
    for k, t in enumerate((8.0, 4.0, 2.0, 1.0)):
        noise = ops.normal(SHAPE, rng.make_rng(4, k), ids, stream=rng.STEP)
        x = (x + x0_of(x, torch.full((3,), t))) / 2 + 0.1 * noise
    return x


def predicted(x, t, eps):
    return x - t.view(-1, 1, 1, 1) * eps


def sample(options=None, **arguments):
    return Sampler(model, Exploding(), Halving, **(options or {})).sample(SHAPE, seed=4, **arguments)


def test_the_whole_way():
    expected = by_hand(lambda x, t: predicted(x, t, model(x / 2, t / 10)).clamp(-1, 1))
    torch.testing.assert_close(sample(), expected)
    assert torch.equal(sample(batch_size=2), sample())
    x = 8 * ops.normal(SHAPE, rng.make_rng(4), torch.arange(3))
    assert torch.equal(sample(x=x), sample()) and not torch.equal(sample({"least": 2.0}), sample())


def test_guidance_with_rescale_in_an_interval():
    def x0(x, t):
        uncond, cond = (model(x / 2, t / 10, torch.full((3,), y)) for y in (0.0, 0.3))
        w = 3.0 if 0.15 <= t[0] / 10 <= 0.5 else 1.0
        m = uncond + w * (cond - uncond)
        ratio = cond.flatten(1).std(1) / m.flatten(1).std(1)
        return predicted(x, t, m * (0.6 * ratio + 0.4).view(-1, 1, 1, 1)).clamp(-1, 1)

    guidance = ClassifierFree(3.0, uncond=0.0, rescale=0.6, interval=(0.15, 0.5))
    torch.testing.assert_close(sample({"guidance": guidance}, condition=0.3), by_hand(x0))


def test_a_classifier():
    gradient = lambda x, t, y: y.view(-1, 1, 1, 1) - x * t.view(-1, 1, 1, 1)  # noqa: E731

    def x0(x, t):
        y = torch.full((3,), 0.3)
        estimate = predicted(x, t, model(x / 2, t / 10, y))
        return estimate + 0.01 * t.view(-1, 1, 1, 1) ** 2 * gradient(x / 2, t / 10, y) / 2

    options = {"guidance": Classifier(gradient, 0.01), "clip": None}
    torch.testing.assert_close(sample(options, condition=0.3), by_hand(x0))
    with pytest.raises(ValueError, match="guidance must be of form score where a solver chooses its own steps"):
        sample({"guidance": Classifier(gradient, form="mean")}, condition=0.3)


def test_a_dynamic_threshold():
    def x0(x, t):
        estimate = predicted(x, t, model(x / 2, t / 10))
        s = torch.quantile(estimate.abs().flatten(1), 0.8, dim=1).clamp(min=1).view(-1, 1, 1, 1)
        return estimate.clamp(-s, s) / s

    torch.testing.assert_close(sample({"clip": DynamicThreshold(0.8)}), by_hand(x0))


def test_the_bar(capsys):
    sample(batch_size=2, progress=True)
    assert "2.0/2" in capsys.readouterr().err


@pytest.mark.parametrize("options, arguments, message", [
    ({}, {"inpaint": (torch.zeros(SHAPE), torch.zeros(1, 1, 4, 4))}, "inpaint must be None for a solver that chooses"),
    ({}, {"x_start": torch.zeros(SHAPE)}, "x_start must be None for a solver that chooses its own steps"),
    ({}, {"callback": print}, "callback must be None for a solver that chooses its own steps"),
    ({"guidance": ClassifierFree(torch.tensor([2.0, 3.0]), 0)}, {"condition": 1}, "guidance.s w must be a number"),
    ({"compile": True}, {}, "compile must be off for a solver that chooses its own steps"),
    ({"cuda_graph": True}, {}, "cuda_graph must be off for a solver that chooses its own steps"),
])  # fmt: skip
def test_what_makes_no_sense(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(options, **arguments)


def test_nothing_to_look_at():
    with pytest.raises(ValueError, match="stream must have a solver with a plan, got one that chooses its own steps"):
        Sampler(model, Exploding(), Halving).stream(SHAPE)
