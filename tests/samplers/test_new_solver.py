"""A solver that the library does not have, as anybody would add it: a function of a plan's rows."""

import inspect
import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.processes import SigmaProcess
from fastdiff.processes.nodes import nodes_of
from fastdiff.samplers.forms import H, Rows, X, eps
from tests.samplers.gaussian_data import DEVIATION, MEAN, line, network, propagated
from tests.samplers.test_moments import assert_moments


def leapfrog(process, timesteps=None, *, clip=1.0):
    """x' = x_before + (sigma' - sigma_before) * eps, through the point in between; the first step is Euler's."""
    nodes, rows = nodes_of(process, timesteps), Rows(clip)
    for i, (at, to) in enumerate(nodes.steps()):
        before = nodes.noise_level[max(i - 1, 0)].item()
        base = H[(i - 1) % 3] if i else X / at.alpha
        slope = to.noise_level - before
        rows.add(at, to.alpha * (base + slope * eps(at)), keep=X / at.alpha, slot=i % 3)
    return rows.plan(nodes.start)


def test_it_takes_at_most_twenty_lines():
    assert len(inspect.getsource(leapfrog).splitlines()) <= 20


def test_it_samples(one_thread):
    for process in (SigmaProcess("edm", sigma_min=0.1, sigma_max=8.0), GaussianProcess(schedules.linear(1000))):
        sampler = Sampler(network(process), process, leapfrog, 40, clip=None)
        expected = propagated(sampler.plan, line(process), 0.0, sampler.plan.start**2)
        assert_moments(sampler.sample((64, 1, 32, 32), seed=4), *expected)


def test_its_order():
    """The midpoint rule of two even steps: order 2."""
    errors = []
    for steps in (100, 200):
        levels, process = torch.linspace(2.0, 0.5, steps + 1, dtype=torch.float64), SigmaProcess("x0")
        x, _ = propagated(leapfrog(process, levels, clip=None), line(process), 3.0, 0.0)
        errors.append(abs(x - MEAN - (3.0 - MEAN) * math.sqrt((DEVIATION**2 + 0.25) / (DEVIATION**2 + 4.0))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
