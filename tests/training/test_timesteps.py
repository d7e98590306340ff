"""What a step trains on: functions of (seed, step), fair, and every image once an epoch."""

import pytest
import torch

from fastdiff.ops.rng import make_rng
from fastdiff.training.timesteps import Batches, flips, torch_seed, uniform


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
