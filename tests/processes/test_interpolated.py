"""A discrete process in continuous time."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import VPSDE, InterpolatedProcess
from fastdiff.processes.interpolated import continuous

PROCESS = GaussianProcess(schedules.linear(1000))


def test_at_the_timesteps_it_is_the_discrete_process():
    process = InterpolatedProcess(PROCESS)
    t = process.levels
    torch.testing.assert_close(process.alpha(t), PROCESS.alpha, rtol=1e-10, atol=0)
    torch.testing.assert_close(process.sigma(t), PROCESS.sigma, rtol=1e-10, atol=0)
    torch.testing.assert_close(process.label(t), torch.arange(1000).double(), rtol=0, atol=1e-9)
    assert (process.t_min, process.t_max) == (t[0], t[-1]) and process.prior_std == 1


def test_labels_are_linear_in_the_log_noise_level_between_timesteps():
    process = InterpolatedProcess(PROCESS)
    t = torch.lerp(process.levels[41], process.levels[42], torch.tensor(0.25, dtype=torch.float64))
    assert process.label(t).item() == pytest.approx(41.25)
    assert process.label(process.t_max + 1).item() == 999 and process.label(process.t_min - 1).item() == 0


def test_the_network_knows_original_timesteps():
    process = InterpolatedProcess(PROCESS.respace([0, 500, 999]))
    assert process.label(process.levels).tolist() == [0, 500, 999]


def test_drift_and_diffusion_follow_from_the_marginals():
    process, h = InterpolatedProcess(PROCESS), 1e-5
    t = torch.linspace(process.t_min, process.t_max, 20, dtype=torch.float64)
    rate = (process.alpha(t + h).log() - process.alpha(t - h).log()) / (2 * h)
    torch.testing.assert_close(process.drift(t), rate, rtol=1e-7, atol=1e-9)
    growth = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    expected = 2 * process.drift(t) * process.sigma(t) ** 2 + process.diffusion(t) ** 2
    torch.testing.assert_close(growth, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(process.time_at(process.noise_level(t)), t, rtol=1e-9, atol=1e-9)


def test_nodes_end_in_clean_data():
    nodes = InterpolatedProcess(PROCESS).nodes(4)
    assert nodes.time[[0, -1]].tolist() == pytest.approx([999, 0]) and (nodes.alpha[-1], nodes.sigma[-1]) == (1, 0)


def test_continuous_leaves_an_sde_alone():
    sde = VPSDE()
    assert continuous(sde) is sde and isinstance(continuous(PROCESS), InterpolatedProcess)


@pytest.mark.parametrize("process, kind, message", [
    (VPSDE(), TypeError, "process must be a GaussianProcess, got VPSDE"),
    (GaussianProcess([0.5]), ValueError, "process must have two timesteps or more and alpha above 0"),
    (GaussianProcess([0.5, 1.0], "v"), ValueError, "process must have two timesteps or more and alpha above 0"),
    (GaussianProcess([0.5, 0.6], "xprev"), ValueError, "prediction must be one of eps, score, x0, v, got 'xprev'"),
])  # fmt: skip
def test_refusals(process, kind, message):
    with pytest.raises(kind, match=message):
        InterpolatedProcess(process)


def test_times_stay_in_the_process():
    process = InterpolatedProcess(PROCESS)
    with pytest.raises(ValueError, match="t must be in"):
        process.predict_eps(torch.zeros(1, 1), torch.tensor([9.0]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="timesteps must be decreasing times"):
        process.nodes([math.inf])
