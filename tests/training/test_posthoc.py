"""Averages rebuilt from snapshots, against averages that were kept, and against integrals."""

import numpy as np
import pytest
import torch
from scipy import integrate

from fastdiff.training import EMA, posthoc
from fastdiff.training.profiles import Power


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(6))
        self.register_buffer("count", torch.tensor(0))


def walk(steps, seed=0):
    """Weights that wander, as a network's do."""
    return torch.randn(steps, 6, generator=torch.Generator().manual_seed(seed)).cumsum(0) / steps**0.5


@pytest.mark.parametrize("a", [(10.0, 5.0), (7.0, 16.97), (3.0, 6.94)])
@pytest.mark.parametrize("b", [(10.0, 5.0), (4.0, 2.0)])
def test_the_inner_product(a, b):
    def weight(tau, t, gamma):
        return (gamma + 1) * tau**gamma / t ** (gamma + 1)

    expected, _ = integrate.quad(lambda tau: weight(tau, *a) * weight(tau, *b), 0, min(a[0], b[0]), epsabs=1e-12)
    assert posthoc.inner_product(*a, *b) == pytest.approx(expected, rel=1e-8)


def test_a_snapshot_is_its_own_reconstruction():
    shares = posthoc.coefficients([10, 20, 20], [6.9, 6.9, 17.0], 20, 6.9)
    assert np.allclose(shares, [0, 1, 0], atol=1e-9)


@pytest.fixture
def run(tmp_path):
    """1000 steps with two profiles kept and three more beside them, a snapshot every 50."""
    net, others = Net(), (0.07, 0.15, 0.2)
    ema, kept = EMA(net, 0.99, Power(0.05), Power(0.1)), EMA(net, *map(Power, others))
    for step, weight in enumerate(walk(1000)):
        net.weight.data = weight
        net.count.fill_(step)
        ema.update(net)
        kept.update(net)
        if (step + 1) % 50 == 0:
            posthoc.save_snapshot(tmp_path, ema)
    return tmp_path, dict(zip(others, kept.averages, strict=True))


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15, 0.2])
def test_profiles_that_were_not_kept(run, sigma_rel):
    """A hundredth of what the weights moved, at most."""
    folder, kept = run
    found, right = posthoc.reconstruct(folder, sigma_rel), kept[sigma_rel]
    assert found["weight"].dtype is torch.float32 and found["count"] == right["count"] == 999
    moved = walk(1000)[-1] - right["weight"]
    assert (found["weight"] - right["weight"]).norm() < 0.01 * moved.norm()


def test_an_earlier_moment_uses_earlier_snapshots(run):
    folder, _ = run
    net = Net()
    ema = EMA(net, Power(0.15))
    for weight in walk(1000)[:500]:
        net.weight.data = weight
        ema.update(net)
    found = posthoc.reconstruct(folder, 0.15, updates=500)
    assert (found["weight"] - ema.average["weight"]).norm() < 0.02 * (walk(1000)[499] - ema.average["weight"]).norm()
    assert found["count"] == 499


def test_refusals(run, tmp_path):
    folder, _ = run
    for updates in (49, 75, 1001):  # between two snapshots the newest weights are in none
        with pytest.raises(ValueError, match=rf"updates must be those of a snapshot, 50, 100, .*, 1000, got {updates}"):
            posthoc.reconstruct(folder, 0.1, updates=updates)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        posthoc.reconstruct(folder, 0.5)
    with pytest.raises(FileNotFoundError, match="run must hold snapshots of Power averages"):
        posthoc.reconstruct(tmp_path / "nowhere", 0.1)
