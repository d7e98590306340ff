"""What a step trains on: functions of (seed, step), fair, and every image once an epoch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.ops.rng import make_rng
from fastdiff.processes import VPSDE
from fastdiff.training import timesteps
from fastdiff.training.timesteps import (
    SAMPLERS,
    Batches,
    LossAware,
    Stratified,
    Uniform,
    dropped,
    flips,
    make_sampler,
    torch_seed,
)


def uniform(T, rng, sample_ids):
    return Uniform(T).draw(rng, sample_ids)[0]



@pytest.mark.parametrize("num_images, batch_size", [(10, 3), (10, 10), (7, 20), (1, 4), (12, 4)])
def test_every_epoch_is_a_permutation(num_images, batch_size):
    batches = Batches(num_images, batch_size, seed=0)
    seen = torch.cat([batches.positions(step) for step in range(5 * num_images)])
    assert seen.dtype is torch.int64
    epochs = [epoch.tolist() for epoch in seen.split(num_images) if len(epoch) == num_images]
    assert len(epochs) == 5 * batch_size
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    if num_images > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 0.9 * len(epochs)


def test_batches_are_a_function_of_seed_and_step():
    batches = Batches(50, 8, seed=3)
    forward = [batches.positions(step).tolist() for step in range(40)]
    backward = [batches.positions(step).tolist() for step in reversed(range(40))]
    assert forward == backward[::-1]
    assert Batches(50, 8, seed=3).positions(33).tolist() == forward[33]
    assert Batches(50, 8, seed=4).positions(33).tolist() != forward[33]


def test_an_order_is_uniform():
    """Each image is first in about one epoch of 5; 4000 epochs, 6 deviations."""
    first = torch.stack([Batches(5, 5, seed).positions(0)[0] for seed in range(4000)])
    assert (first.bincount(minlength=5) - 800).abs().max() < 6 * (4000 * 0.2 * 0.8) ** 0.5


def test_timesteps_are_uniform():
    t = uniform(10, make_rng(0, 5), torch.arange(100_000))
    assert t.dtype is torch.int64 and t.min() == 0 and t.max() == 9
    assert (t.bincount() - 10_000).abs().max() < 6 * (100_000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("draw", [uniform, lambda T, rng, ids: flips(rng, ids)])
def test_draws_are_functions_of_seed_step_and_id(draw):
    whole = draw(1000, make_rng(1, 2), torch.arange(64))
    assert torch.equal(draw(1000, make_rng(1, 2), torch.tensor([17, 3])), whole[[17, 3]])
    for other in (make_rng(2, 2), make_rng(1, 3)):
        assert not torch.equal(draw(1000, other, torch.arange(64)), whole)


@pytest.mark.parametrize("T", [1, 2, 999, 2**31 - 1])
def test_any_number_of_timesteps(T):
    t = uniform(T, make_rng(0), torch.arange(10_000))
    assert t.min() >= 0 and t.max() < T
    assert t.double().mean().item() == pytest.approx((T - 1) / 2, rel=0.04)


def test_flips_are_fair_and_independent_of_timesteps():
    coins, t = flips(make_rng(0), torch.arange(100_000)), uniform(2, make_rng(0), torch.arange(100_000)).bool()
    assert coins.dtype is torch.bool
    for event in (coins, coins == t):
        assert abs(event.sum().item() - 50_000) < 6 * 158


def test_seeds_of_torch():
    seeds = {torch_seed(seed, step) for seed in range(-20, 20) for step in range(200)}
    assert len(seeds) == 40 * 200 and all(0 <= seed < 2**63 for seed in seeds)


def test_labels_are_dropped_as_often_as_asked():
    for probability in (0.0, 0.1, 1.0):
        lost = dropped(make_rng(0), torch.arange(100_000), probability)
        assert abs(lost.sum().item() - 100_000 * probability) <= 6 * (100_000 * probability * (1 - probability)) ** 0.5


# ---- Stratified ----


@pytest.mark.parametrize("T, B", [(1000, 64), (10, 10), (7, 20), (1000, 1)])
def test_strata(T, B):
    """As many in each part of the timesteps as it is long, within one; each t alone uniform."""
    draws = torch.stack([Stratified(T, B).draw(make_rng(0, step), torch.arange(B))[0] for step in range(2000)])
    for t in draws[:50]:
        counts = t.bincount(minlength=T).cumsum(0)
        assert ((counts - B * torch.arange(1, T + 1) / T).abs() <= 1 + 1e-6).all()
    halves = (draws < T / 2).double().mean(0)
    expected = (T + 1) // 2 / T
    assert (halves - expected).abs().max() < 6 * (0.25 / 2000) ** 0.5


# ---- Loss-aware ----


@pytest.fixture
def golden():
    with np.load(Path(__file__).parents[1] / "data/resampler.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("run", ["warm", "cold"])
def test_the_recorded_resampler(golden, run):
    """improved-diffusion's LossSecondMomentResampler, fed the same losses in the same order."""
    options = json.loads(str(golden["config"]))
    sampler = LossAware(options["T"], options["history_per_term"], options["uniform_prob"])
    checkpoints = golden[f"{run}.checkpoints"].tolist()
    for step, (t, loss) in enumerate(zip(golden[f"{run}.t"], golden[f"{run}.loss"], strict=True)):
        sampler.update(torch.from_numpy(t), torch.from_numpy(loss))
        if step in checkpoints:
            weights = golden[f"{run}.weights"][checkpoints.index(step)]
            expected = torch.from_numpy(weights / weights.sum())
            torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-12, atol=0)
    p = torch.from_numpy(golden[f"{run}.p"])
    torch.testing.assert_close(sampler.probabilities(), p, rtol=1e-12, atol=0)
    indices = torch.from_numpy(golden[f"{run}.sample.indices"])
    weights = torch.from_numpy(golden[f"{run}.sample.importance_weights"])
    torch.testing.assert_close((1 / (options["T"] * sampler.probabilities()[indices])).float(), weights)


def warmed(T=5, **options):
    sampler = LossAware(T, history=2, **options)
    for step in range(2):
        sampler.update(torch.arange(T), 1.0 + torch.arange(T) + step)
    return sampler


def test_timesteps_follow_their_losses():
    """And a loss divided by T p(t) has the mean of the uniform draw's."""
    sampler = warmed()
    p, (t, weight) = sampler.probabilities(), sampler.draw(make_rng(0), torch.arange(200_000))
    assert p[4] > 3 * p[0] and p.sum().item() == pytest.approx(1)
    counts = t.bincount(minlength=5)
    assert ((counts - 200_000 * p).abs() < 6 * (200_000 * p * (1 - p)).sqrt()).all()
    torch.testing.assert_close(weight, (1 / (5 * p[t])).float())
    f = torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0])
    assert (f[t] * weight).mean().item() == pytest.approx(f.mean().item(), rel=0.02)


def test_more_losses_of_a_timestep_than_are_kept():
    """In one batch: the last of them stay."""
    one, many = warmed(), warmed()
    t, loss = torch.tensor([3, 3, 0, 3, 3, 3]), torch.tensor([9.0, 8.0, 2.5, 7.0, 6.0, 5.0])
    many.update(t, loss)
    for i in range(len(t)):
        one.update(t[i : i + 1], loss[i : i + 1])
    assert torch.equal(one.probabilities(), many.probabilities()) and torch.equal(one.counts, many.counts)
    assert sorted(many.losses[3].tolist()) == [5.0, 6.0]
    assert sorted(many.losses[-1].tolist()) == [7.0, 8.0]  # aside, so that no place is written twice at once


def test_losses_that_are_not_finite_are_passed_over():
    """One NaN of a scaled step in float16 would leave no probabilities, and so no other timestep to draw."""
    clean, other = warmed(), warmed()
    t, loss = torch.tensor([1, 1, 3, 1, 4]), torch.tensor([1.0, torch.nan, torch.inf, 2.0, 3.0])
    other.update(t, loss)
    clean.update(t[loss.isfinite()], loss[loss.isfinite()])
    assert torch.equal(other.counts, clean.counts) and torch.equal(other.probabilities(), clean.probabilities())


def test_a_timestep_without_history_keeps_all_alike():
    sampler = LossAware(5, history=2)
    sampler.update(torch.arange(4).repeat(4), torch.rand(16))
    assert sampler.probabilities().tolist() == [0.2] * 5
    _, weight = sampler.draw(make_rng(0), torch.arange(8))
    assert torch.equal(weight, torch.ones(8))


def test_losses_of_all_ranks_in_their_order(monkeypatch):
    """Two ranks with half of a batch each end up as one with all of it."""
    t, loss = torch.tensor([3, 1, 3, 2, 3, 0]), torch.rand(6)
    alone = warmed()
    alone.update(t, loss)
    together = warmed()
    halves = iter([t, loss.double()])
    monkeypatch.setattr(timesteps, "_gathered", lambda value: next(halves))
    together.update(t[:3], loss[:3])
    assert torch.equal(alone.losses, together.losses) and torch.equal(alone.counts, together.counts)


def test_state_is_all_of_it():
    a, b = warmed(), LossAware(5, history=2)
    for name, value in a.state().items():
        b.state()[name].copy_(value)
    assert torch.equal(a.probabilities(), b.probabilities()) and a.probabilities()[4] != 0.2


@pytest.mark.parametrize("kind", SAMPLERS)
def test_samplers_by_name(kind):
    t, weight = make_sampler(kind, GaussianProcess(schedules.linear(50)), 4).draw(make_rng(0), torch.arange(4))
    assert t.dtype is torch.int64 and (weight is None or weight.dtype is torch.float32)


def test_bad_samplers():
    with pytest.raises(ValueError, match="timesteps must be one of uniform, stratified, loss-aware, got 'all'"):
        make_sampler("all", None, 4)
    with pytest.raises(ValueError, match=r"history must be positive and uniform in \[0, 1\], got 0 and 0.001"):
        LossAware(10, history=0)


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_continuous_times(kind):
    """In (t_min, t_max], as evenly spread as they should be, and each a function of its place."""
    sampler, ids = make_sampler(kind, VPSDE(t_min=0.1), 512), torch.arange(512)
    t, weight = sampler.draw(make_rng(3), ids)
    assert t.dtype is torch.float64 and weight is None and t.min() > 0.1 and t.max() <= 1
    even = torch.sort((t - 0.1) / 0.9).values - torch.arange(512) / 512
    assert even.abs().max() < (2 / 512 if kind == "stratified" else 0.1)
    assert torch.equal(sampler.draw(make_rng(3), ids[100:110])[0], t[100:110])


def test_continuous_times_are_not_loss_aware():
    with pytest.raises(ValueError, match="timesteps must be uniform or stratified for a VPSDE, got 'loss-aware'"):
        make_sampler("loss-aware", VPSDE(), 4)
