"""Inpainting: the mask to the last bit, noise levels, RePaint's schedule."""

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.samplers import Inpaint, Plan
from fastdiff.samplers.inpaint import jump_schedule

SHAPE = (2, 3, 4, 4)
T = 100


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(T))


def model(x, t):
    return 0.3 * torch.tanh(x) + 0.001 * t.view(-1, 1, 1, 1)


def task(dtype=torch.float32):
    known = torch.linspace(-1, 1, 96).view(SHAPE)
    mask = torch.zeros(1, 1, 4, 4, dtype=dtype)
    mask[..., 1:3, 1:3] = 1
    return known, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("jumps", [1, 3])
def test_the_known_part_is_exact_at_the_end(backend, process, dtype, jumps):
    known, mask = task(dtype)
    samples = Sampler(model, process, steps=10).sample(SHAPE, inpaint=Inpaint(known, mask, 2, jumps))
    keep = (mask == 0).expand(SHAPE)
    assert torch.equal(samples[keep], known[keep]) and (samples[~keep] != known[~keep]).all()


def test_on_the_way_it_is_known_at_its_noise_level(backend, process):
    known, mask = task()
    sampler, ids = Sampler(model, process, steps=10), torch.arange(2)
    respaced, keep = process.respace(10), (mask == 0).expand(SHAPE)
    for step in sampler.stream(SHAPE, seed=3, inpaint=(known, mask)):
        t = 8 - step.row
        noise = ops.normal(SHAPE, rng.make_rng(3, step.row), ids, stream=rng.KNOWN)
        alpha, sigma = (respaced.alpha[t], respaced.sigma[t]) if t >= 0 else (1.0, 0.0)
        torch.testing.assert_close(step.x[keep], (alpha * known + sigma * noise)[keep].float())


def test_churn_above_the_first_level_takes_the_known_part_along():
    """By gamma = sqrt(2) - 1 here: sigma / alpha times sqrt(2), alpha^2 + sigma^2 = 1."""
    process = GaussianProcess(torch.linspace(0.01, 0.2, 20))
    known, mask = task()
    sampler = Sampler(model, process, "euler", 4, s_churn=2.0)
    step = next(sampler.stream(SHAPE, seed=3, inpaint=(known, mask)))
    noise = ops.normal(SHAPE, rng.make_rng(3, 0), torch.arange(2), stream=rng.KNOWN)
    level, keep = process.noise_level[-1] * 2**0.5, (mask == 0).expand(SHAPE)
    expected = (known + level * noise) / (1 + level**2).sqrt()
    torch.testing.assert_close(step.x[keep], expected[keep].float())


def test_outside_the_known_part_one_step_is_as_ever(process):
    known, mask = task()
    sampler = Sampler(model, process, steps=10)
    plain, filled = next(sampler.stream(SHAPE)), next(sampler.stream(SHAPE, inpaint=(known, mask)))
    inside = (mask == 1).expand(SHAPE)
    assert torch.equal(plain.x[inside], filled.x[inside]) and torch.equal(plain.x0, filled.x0)


def test_an_empty_mask_and_a_full_one(process):
    known, _ = task()
    sampler = Sampler(model, process, steps=10)
    assert torch.equal(sampler.sample(SHAPE, inpaint=(known, torch.ones(1, 1, 4, 4))), sampler.sample(SHAPE))
    assert torch.equal(sampler.sample(SHAPE, inpaint=(known, torch.zeros(1, 1, 4, 4))), known)


def test_history_keeps_the_unmasked_x0(process):
    """The second row gives back the first one's x0, from history."""

    def solver(process, timesteps, *, clip):
        return Plan([50, 10], call=[True, False], p_x=[2, 0], c_0=[1, 0], write=[0, -1], q_0=[1, 0], c_1=[0, 1])

    known, mask = task()
    steps = list(Sampler(model, process, solver).stream(SHAPE, inpaint=(known, mask)))
    x0 = 2 * ops.normal(SHAPE, rng.make_rng(0), torch.arange(2))
    inside = (mask == 1).expand(SHAPE)
    assert torch.equal(steps[1].x, torch.where(inside, x0, known))


def test_images_of_bytes_and_one_for_all(process):
    known = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    samples = Sampler(model, process, steps=3).sample(SHAPE, inpaint=(known, torch.zeros(1, 3, 4, 4)))
    torch.testing.assert_close(samples, (known.float() / 127.5 - 1).expand(SHAPE))


def test_batches_take_their_own_images(process):
    known, mask = torch.randn(5, 3, 4, 4), torch.rand(5, 1, 4, 4) > 0.5
    sampler = Sampler(model, process, steps=4)
    whole = sampler.sample((5, 3, 4, 4), inpaint=(known, mask))
    assert torch.equal(sampler.sample((5, 3, 4, 4), inpaint=(known, mask), batch_size=2), whole)


# ---- RePaint's jumps ----


@pytest.mark.parametrize("steps, jump_length, jumps", [(25, 5, 3), (250, 10, 10), (10, 1, 2), (8, 10, 4), (20, 7, 2)])
def test_the_schedule_is_the_papers(steps, jump_length, jumps):
    """That of diffusers' RePaintScheduler, which is the paper's code."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.RePaintScheduler(steps)
    theirs.set_timesteps(steps, jump_length, jumps)
    assert jump_schedule(steps, jump_length, jumps) == [*theirs.timesteps.tolist(), -1]


def test_up_is_noising(backend, process):
    """Down from point 2 to 1 and 0, up to 2 at once is q(x_2 | x_0): each row up composes to it."""
    known, _ = task()
    sampler = Sampler(model, process, steps=3)
    inpaint = Inpaint(known, torch.ones(1, 1, 4, 4), jump_length=1, jumps=2)
    plan = inpaint.plan(sampler.plan, sampler.levels)
    assert jump_schedule(3, 1, 2) == [2, 1, 2, 1, 0, 1, 0, -1]
    assert plan.time.tolist() == [99, 50, 99, 50, 0, 50, 0]
    assert plan.call == (True, False, True, True, False, True, True)
    respaced, steps = process.respace(3), list(sampler.stream(SHAPE, inpaint=inpaint))
    beta = respaced.betas[2].item()
    noise = ops.normal(SHAPE, rng.make_rng(0, 1), torch.arange(2), stream=rng.STEP)
    expected = (1 - beta) ** 0.5 * steps[0].x + beta**0.5 * noise
    torch.testing.assert_close(steps[1].x, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(steps[1].x0, steps[0].x0)


def test_jumps_bring_the_parts_in_tune():
    """Two pixels with correlation 0.95, one known: the other's regression on it, which plain replacement misses."""
    process = GaussianProcess(schedules.linear(T))
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]])

    def exact(x, t):
        alpha, sigma = (table[t[0]].float() for table in (process.alpha, process.sigma))
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(2)
        return (sigma * torch.linalg.solve(marginal, x.flatten(1).T).T).view(x.shape)

    known, mask = torch.ones(1, 2, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    sampler = Sampler(exact, process, clip=None, steps=25)
    means = [
        sampler.sample((2000, 2, 1, 1), inpaint=Inpaint(known, mask, 1, jumps))[:, 1].mean().item() for jumps in (1, 6)
    ]
    assert abs(means[1] - 0.95) < 0.5 * abs(means[0] - 0.95)


# ---- Errors ----


@pytest.mark.parametrize("inpaint, kind, message", [
    ((torch.zeros(3, 3, 4, 4), torch.zeros(1, 1, 4, 4)), ValueError, r"inpaint's known must have n = 2 samples, or 1"),
    ((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)), ValueError, r"known must have samples of shape \[3, 4, 4\]"),
    ((torch.zeros(SHAPE), torch.zeros(1, 2, 4, 4)), ValueError, r"mask must have samples of shape \[1 or 3, 4, 4\]"),
    ((torch.zeros(SHAPE), torch.zeros(1, 1, 4, 4).long()), TypeError, "mask must be bool or floating, got torch.int64"),
    ((torch.zeros(SHAPE).long(), torch.zeros(1, 1, 4, 4)), TypeError, "known must be uint8 or floating, got torch.int"),
    (torch.zeros(SHAPE), TypeError, r"inpaint must be \(known, mask\) or Inpaint, got Tensor"),  # of two images
])  # fmt: skip
def test_bad_images(process, inpaint, kind, message):
    with pytest.raises(kind, match=message):
        Sampler(model, process, steps=2).sample(SHAPE, inpaint=inpaint)


def test_what_inpainting_cannot_be(process):
    known, mask = task()
    for options, message in (({"jumps": 0}, "jumps must be an int of at least 1, got 0"),
                             ({"jumps": 2.5}, "jumps must be an int of at least 1, got 2.5"),
                             ({"jump_length": 0}, "jump_length must be an int of at least 1, got 0")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Inpaint(known, mask, **options)
    with pytest.raises(TypeError, match="mask must be a tensor, got list"):
        Inpaint(known, [1])

    def multistep(process, timesteps, *, clip):
        return Plan([5, 0], c_1=[0, 1], write=[0, -1], q_0=[1, 0])

    with pytest.raises(ValueError, match="jumps must be 1 for a solver with history or of several stages, got 2"):
        Sampler(model, process, multistep).sample(SHAPE, inpaint=Inpaint(known, mask, jumps=2))
