"""Dynamic thresholds: quantiles, and diffusers' schedulers step by step."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.samplers import ClassifierFree, DynamicThreshold


@pytest.mark.parametrize("quantile", [0.995, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 1, 1), (1, 11, 1)], ids=str)
def test_the_quantile_of_each_sample(quantile, size):
    x0 = 4 * torch.randn(5, *size, generator=torch.Generator().manual_seed(1))
    bound, shrink = DynamicThreshold(quantile)(x0)
    expected = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1)
    torch.testing.assert_close(bound, expected)
    torch.testing.assert_close(shrink, 1 / expected)
    assert DynamicThreshold(quantile, maximum=1.5)(x0)[0].max() <= 1.5


def wild(x, t):
    return 1.7 * torch.sin(x) + 0.2 * x * t.view(-1, 1, 1, 1) / 100


@pytest.mark.parametrize("maximum", [2.0, 1.0, 1e4])
@pytest.mark.parametrize("scheduler, spacing, solver, told", [
    ("DDPMScheduler", "linspace", "ddpm", {}),
    ("DDIMScheduler", "leading", "ddim", {"clipped_eps": False}),
    ("DDIMScheduler", "leading", "ddim", {"clipped_eps": False, "eta": 0.7}),
])  # fmt: skip
def test_steps_are_those_of_diffusers(backend, monkeypatch, scheduler, spacing, solver, told, maximum):
    """Its noise is ours: the loops are compared live, whole."""
    diffusers = pytest.importorskip("diffusers")
    steps, shape = 20, (3, 3, 8, 8)
    options = dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing=spacing)
    theirs = getattr(diffusers, scheduler)(
        100, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=maximum, **options
    )
    theirs.set_timesteps(steps)
    process, ids, rows = GaussianProcess(schedules.cosine(100), "v"), torch.arange(3), iter(range(steps))
    draw = lambda *_, **__: ops.normal(shape, rng.make_rng(5, next(rows)), ids, stream=rng.STEP)  # noqa: E731
    monkeypatch.setattr(f"{type(theirs).__module__}.randn_tensor", draw)
    x = ops.normal(shape, rng.make_rng(5), ids)
    sampler = Sampler(wild, process, solver, theirs.timesteps, clip=DynamicThreshold(0.9, maximum), **told)
    eta = {"eta": told["eta"]} if "eta" in told else {}
    for step in sampler.stream(shape, seed=5):
        stepped = theirs.step(wild(x, torch.full((3,), step.time)), step.time, x, **eta)
        x = stepped.prev_sample
        torch.testing.assert_close(step.x0, stepped.pred_original_sample, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(step.x, x, rtol=1e-4, atol=2e-4)


def test_a_static_clip_is_a_maximum_of_1():
    process = GaussianProcess(schedules.linear(100))
    static = Sampler(wild, process, steps=10).sample((2, 3, 8, 8))
    dynamic = Sampler(wild, process, steps=10, clip=DynamicThreshold(maximum=1)).sample((2, 3, 8, 8))
    assert torch.equal(dynamic, static)


def test_it_sees_the_guided_estimate(backend):
    """x0 = (x - sigma * m) / alpha of the combined and rescaled output, at one row."""
    process = GaussianProcess(schedules.linear(100))
    model = lambda x, t, y: wild(x, t) * y.view(-1, 1, 1, 1)  # noqa: E731
    guidance, threshold = ClassifierFree(6.0, uncond=0.5, rescale=0.4), DynamicThreshold(0.9)
    sampler = Sampler(model, process, steps=10, guidance=guidance, clip=threshold)
    step = next(sampler.stream((2, 3, 8, 8), condition=1.0))
    x = ops.normal((2, 3, 8, 8), rng.make_rng(0), torch.arange(2))
    uncond, cond = (model(x, torch.full((2,), 99), torch.full((2,), y)) for y in (0.5, 1.0))
    m = uncond + 6 * (cond - uncond)
    m = m * (0.4 * cond.flatten(1).std(1) / m.flatten(1).std(1) + 0.6).view(-1, 1, 1, 1)
    x0 = (x - process.sigma[99] * m) / process.alpha[99]
    s = torch.quantile(x0.abs().flatten(1), 0.9, dim=1).view(-1, 1, 1, 1)
    assert (s > 1).all()
    torch.testing.assert_close(step.x0, (x0.clamp(-s, s) / s).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make, message", [
    (lambda: DynamicThreshold(0), r"quantile must be in \(0, 1\], got 0"),
    (lambda: DynamicThreshold(1.5), r"quantile must be in \(0, 1\], got 1.5"),
    (lambda: DynamicThreshold(maximum=0.5), "maximum must be at least 1, got 0.5"),
    (lambda: DynamicThreshold(maximum=math.nan), "maximum must be at least 1, got nan"),
])  # fmt: skip
def test_bad_thresholds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
