"""Guidance, against what a hand computes."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.samplers import Classifier, ClassifierFree, Plan, ddpm, gradient_of

SHAPE = (2, 3, 4, 4)
T = 100


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(T))


def conditional(x, t, y):
    """eps that differs with the label; the label -1 is none."""
    y = y.view(-1, 1, 1, 1)
    return 0.1 * x + 0.05 * y * torch.cos(3 * x) + 0.001 * t.view(-1, 1, 1, 1)


class Counting:
    """A model that remembers its calls' sizes and times."""

    null_condition = -1

    def __init__(self, model=conditional):
        self.model, self.calls = model, []

    def __call__(self, x, t, *rest, **keywords):
        self.calls.append((len(x), t[0].item()))
        return self.model(x, t, *rest, **keywords)


def by_hand(process, eps_of, steps, gain_of=lambda uncond, cond, m: 1.0):
    """DDPM in float64 with eps_of(x, t) -> (uncond, cond, w)."""
    plan, ids = ddpm(process, steps), torch.arange(SHAPE[0])
    x = ops.normal(SHAPE, rng.make_rng(0), ids).double()
    for row, t in enumerate(plan.time):
        uncond, cond, w = eps_of(x, t.expand(len(x)))
        m = uncond + w * (cond - uncond)
        m = m * gain_of(uncond, cond, m)
        x0 = (plan["p_x"][row] * x + plan["p_m"][row] * m).clamp(-1, 1)
        noise = ops.normal(SHAPE, rng.make_rng(0, row), ids, stream=rng.STEP)
        x = plan["c_x"][row] * x + plan["c_0"][row] * x0 + plan["std"][row] * noise
    return x


def halves(w):
    labels = torch.tensor([2, 5])
    return lambda x, t: (conditional(x, t, torch.tensor([-1, -1])), conditional(x, t, labels), w)


def assert_near(found, expected, atol=2e-4):
    assert (found.double() - expected).abs().max() < atol


@pytest.mark.parametrize("w", [3.0, 0.0, -1.5])
def test_two_halves_in_one_call_combined_by_w(backend, process, w):
    model = Counting()
    samples = Sampler(model, process, steps=10, guidance=w).sample(SHAPE, condition=[2, 5])
    assert {size for size, _ in model.calls} == {4} and len(model.calls) == 10
    assert_near(samples, by_hand(process, halves(w), 10))


def test_a_weight_of_1_is_the_conditional_half_alone(process):
    model = Counting()
    samples = Sampler(model, process, steps=10, guidance=1).sample(SHAPE, condition=[2, 5])
    assert {size for size, _ in model.calls} == {2}
    assert torch.equal(samples, Sampler(conditional, process, steps=10).sample(SHAPE, condition=[2, 5]))


def test_a_weight_for_each_row(process):
    weights = torch.linspace(0, 4, 10)
    guidance = ClassifierFree(weights, uncond=-1)
    samples = Sampler(conditional, process, steps=10, guidance=guidance).sample(SHAPE, condition=[2, 5])
    rows = iter(weights.tolist())
    assert_near(samples, by_hand(process, lambda x, t: (*halves(0)(x, t)[:2], next(rows)), 10))


def test_outside_the_interval_one_half_runs(process):
    model = Counting()
    sampler = Sampler(model, process, guidance=ClassifierFree(4.0, interval=(20, 59)))
    samples = sampler.sample(SHAPE, condition=[2, 5])
    guided = [t for size, t in model.calls if size == 4]
    assert guided == list(range(59, 19, -1)) and len(model.calls) == T
    inside = lambda x, t: (*halves(0)(x, t)[:2], 4.0 if 20 <= t[0] <= 59 else 1.0)  # noqa: E731
    assert_near(samples, by_hand(process, inside, None), 1e-3)


def test_rescale_brings_the_deviation_back(backend, process):
    def gain(uncond, cond, m):
        ratio = cond.flatten(1).std(1) / m.flatten(1).std(1)
        return (0.7 * ratio + 0.3).view(-1, 1, 1, 1)

    guidance = ClassifierFree(5.0, uncond=-1, rescale=0.7)
    samples = Sampler(conditional, process, steps=10, guidance=guidance).sample(SHAPE, condition=[2, 5])
    assert_near(samples, by_hand(process, halves(5.0), 10, gain))


def test_rescale_is_that_of_diffusers(process):
    pipeline = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    uncond, cond = torch.randn(2, 3, 4, 5, 5).unbind()
    guided = uncond + 7.5 * (cond - uncond)
    expected = pipeline.rescale_noise_cfg(guided, cond, guidance_rescale=0.7)
    gain = ClassifierFree(7.5, rescale=0.7).gain(torch.cat([uncond, cond]), 4, torch.tensor([7.5]))
    torch.testing.assert_close(guided * gain.view(-1, 1, 1, 1), expected)


def test_keywords_in_both_halves(process):
    """A dict: what uncond does not name is the conditional half's; what is no tensor goes through as it is."""
    seen = []

    def model(x, t, *, text, size, flag):
        seen.append((text.clone(), size.clone(), flag))
        return 0.1 * x + text.view(-1, 1, 1, 1)

    guidance = ClassifierFree(2.0, uncond={"text": torch.zeros(1, 1)})
    condition = {"text": torch.tensor([[0.1], [0.2]]), "size": torch.tensor([[7, 8]]), "flag": "on"}
    Sampler(model, process, steps=2, guidance=guidance).sample(SHAPE, condition=condition)
    text, size, flag = seen[0]
    assert torch.equal(text, torch.tensor([[0.0], [0.0], [0.1], [0.2]])) and flag == "on"
    assert size.tolist() == [[7, 8]] * 4


def test_learned_variance_is_the_conditional_halfs(process):
    """The kernel takes v from the second half, whatever w."""

    def model(x, t, y):
        return torch.cat([0.1 * x, y.view(-1, 1, 1, 1).expand_as(x).float()], 1)

    def solver(process, timesteps, *, clip):
        return Plan([5], l_0=0.0, l_1=2.0, std=1.0)

    samples = Sampler(model, process, solver, guidance=ClassifierFree(3.0, uncond=9)).sample(SHAPE, condition=0.5)
    noise = ops.normal(SHAPE, rng.make_rng(0), torch.arange(2), stream=rng.STEP)
    torch.testing.assert_close(samples, math.exp(0.5) * noise)


# ---- Classifiers ----


def pull(x, t, y):
    """The gradient of -|x - y / 10|^2 / 2."""
    return y.view(-1, 1, 1, 1) / 10 - x


@pytest.mark.parametrize("form", ["mean", "score"])
def test_a_classifier_in_its_two_forms(backend, process, form):
    labels, scale = torch.tensor([2, 5]), 1.5
    guidance = Classifier(pull, scale, form)
    samples = Sampler(conditional, process, steps=10, guidance=guidance).sample(SHAPE, condition=labels)

    plan, respaced, ids = ddpm(process, 10), process.respace(10), torch.arange(SHAPE[0])
    x = ops.normal(SHAPE, rng.make_rng(0), ids).double()
    for row, t in enumerate(plan.time):
        j = 9 - row
        eps = conditional(x, t.expand(2), labels)
        x0 = ((x - respaced.sigma[j] * eps) / respaced.alpha[j]).clamp(-1, 1)
        if form == "score":  # eps' = eps - sigma * gradient in the clipped estimate's terms
            x0 = x0 + respaced.sigma[j] ** 2 / respaced.alpha[j] * scale * pull(x, t, labels)
        mean = respaced.posterior_mean_coef1[j] * x0 + respaced.posterior_mean_coef2[j] * x
        if form == "mean":
            mean = mean + respaced.std[j] ** 2 * scale * pull(x, t, labels)
        noise = ops.normal(SHAPE, rng.make_rng(0, row), ids, stream=rng.STEP)
        x = mean + respaced.std[j] * noise
    assert_near(samples, x)


def test_the_mean_form_of_a_learned_variance(process):
    """g_v * s^2, element by element."""

    def model(x, t, y):
        return torch.cat([torch.zeros_like(x), x], 1)

    def solver(process, timesteps, *, clip):
        return Plan([5], c_x=1.0, l_0=0.1, l_1=2.0)

    found = Sampler(model, process, solver, guidance=Classifier(pull, 0.5, "mean")).sample(SHAPE, condition=3)
    x = ops.normal(SHAPE, rng.make_rng(0), torch.arange(2))
    torch.testing.assert_close(found, x + 0.5 * torch.exp(0.1 + 2 * x) * (0.3 - x), rtol=1e-5, atol=1e-5)


def test_the_score_form_moves_the_raw_output_too(process):
    """A row that keeps m is the row of m' = m - sigma * gradient, as if the network had said so."""
    p_x, p_m, sigma = process.p_x[50], process.p_m[50], process.sigma[50]

    def solver(process, timesteps, *, clip):
        return Plan([50], p_x=p_x, p_m=p_m, c_0=0.7, c_m=0.4)

    def shifted(x, t, y):
        return conditional(x, t, y) - sigma * 2.0 * pull(x, t, y)

    guided = Sampler(conditional, process, solver, clip=None, guidance=Classifier(pull, 2.0)).sample(SHAPE, condition=3)
    told = Sampler(shifted, process, solver, clip=None).sample(SHAPE, condition=3)
    torch.testing.assert_close(guided, told.float(), rtol=1e-4, atol=1e-4)


def test_the_score_form_in_a_view_of_noise_levels(process):
    """The state is x / alpha, the network and the classifier are fed x."""
    alpha, sigma = process.alpha[50], process.sigma[50]

    def solver(process, timesteps, *, clip):
        return Plan([50], c_in=alpha, p_x=1.0, p_m=-sigma / alpha, c_0=1.0)

    def shifted(x, t, y):
        return conditional(x, t, y) - sigma * 2.0 * pull(x, t, y)

    guided = Sampler(conditional, process, solver, clip=None, guidance=Classifier(pull, 2.0)).sample(SHAPE, condition=3)
    told = Sampler(shifted, process, solver, clip=None).sample(SHAPE, condition=3)
    torch.testing.assert_close(guided, told.float(), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_classifiers_logits(process):
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 7))
    gradient, x, y = gradient_of(lambda x, t: classifier(x)), torch.randn(SHAPE), torch.tensor([1, 4])
    with torch.no_grad():
        found = gradient(x, None, y)
        logits, step = lambda x: classifier(x).log_softmax(1), 1e-3 * found
        rise = (logits(x + step) - logits(x - step)).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(rise, 2e-3 * found.flatten(1).square().sum(1), rtol=1e-2, atol=1e-6)
    guidance = Classifier(gradient, 3.0)
    plain = Sampler(conditional, process, steps=5).sample(SHAPE, condition=y)
    guided = Sampler(conditional, process, steps=5, guidance=guidance).sample(SHAPE, condition=y)
    assert (logits(guided) - logits(plain)).gather(1, y[:, None]).min() > 0
    assert not guided.requires_grad


# ---- Errors ----


@pytest.mark.parametrize("make, kind, message", [
    (lambda: ClassifierFree(math.nan), ValueError, "w must be finite, got nan"),
    (lambda: ClassifierFree("2"), TypeError, "w must be a number, or one for each row, got '2'"),
    (lambda: ClassifierFree(2, rescale=1.1), ValueError, r"rescale must be in \[0, 1\], got 1\.1"),
    (lambda: ClassifierFree(2, rescale="1"), ValueError, r"rescale must be in \[0, 1\], got '1'"),
    (lambda: ClassifierFree(2, interval=(3, 1)), ValueError, r"interval must be \(lo, hi\) with lo at most hi"),
    (lambda: ClassifierFree(2, interval=5), ValueError, r"interval must be \(lo, hi\) with lo at most hi, got 5"),
    (lambda: ClassifierFree(2, interval=("1", "3")), ValueError, r"interval must be \(lo, hi\) with lo at most hi"),
    (lambda: Classifier(3), TypeError, "gradient must be callable, got int"),
    (lambda: Classifier(pull, form="both"), ValueError, "form must be mean or score, got 'both'"),
    (lambda: Classifier(pull, math.inf), ValueError, "scale must be finite, got inf"),
    (lambda: Classifier(pull, "3"), ValueError, "scale must be finite, got '3'"),
])  # fmt: skip
def test_bad_guidance(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def keeping(process, timesteps, *, clip):
    return Plan([5, 0], q_m=[1, 0], write=[0, -1], c_1=[0, 1])


@pytest.mark.parametrize("options, arguments, message", [
    ({"guidance": "much"}, {}, "guidance must be a finite number, ClassifierFree or Classifier, got 'much'"),
    ({"guidance": 2.0}, {"condition": 3}, r"guidance must be ClassifierFree\(w, uncond=...\) for a model without"),
    ({"guidance": ClassifierFree(2.0, uncond=1)}, {}, "condition must be given where guidance is, got None"),
    ({"guidance": ClassifierFree([1, 2])}, {}, r"w must be a number or have shape \[100\], got \[2\]"),
    ({"guidance": ClassifierFree(2.0, uncond={"z": 1})}, {"condition": {"y": 1}}, "uncond must hold keywords of cond"),
    ({"guidance": ClassifierFree(2.0, uncond={"y": "a"})}, {"condition": {"y": "b"}}, "uncond's y must be a tensor"),
    ({"guidance": ClassifierFree(2.0, uncond={"text": torch.zeros(1, 4, 2)})},
     {"condition": {"text": torch.ones(1, 3, 2)}},
     r"uncond's text must have samples of shape \[3, 2\] as condition has, got \[4, 2\]"),
    ({"guidance": Classifier(pull), "solver": keeping}, {}, "guidance must be of form mean, or none, where history"),
])  # fmt: skip
def test_guidance_that_cannot_be(process, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(conditional, process, **options).sample(SHAPE, **arguments)
