"""A discrete process in continuous time."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.processes import VPSDE, InterpolatedProcess
from fastdiff.processes.interpolated import LevelProcess, continuous
from fastdiff.processes.nodes import Nodes
from fastdiff.samplers import AdaptiveFlow, DPMAdaptive, dpm_fast, probability_flow
from tests.samplers.known import Gaussian

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


# ---- A process known by its noise levels ----


class Preconditioned:
    """EDM's scalings with sigma_data = 0.5 (Karras et al. 2022, table 1)."""

    sigma_min, sigma_max = 0.02, 5.0

    def through(self, levels):
        assert (levels.diff() < 0).all() and levels[-1] == 0
        s = levels[:-1]
        norm = (s**2 + 0.25).sqrt()
        return Nodes(s.log() / 4, torch.ones_like(levels), levels, 0.25 / norm**2, 0.5 * s / norm, 1 / norm)


def test_a_process_of_noise_levels_is_asked_at_any_times():
    """Of any order, with repeats, as the samples of an adaptive solver have them."""
    process, t = LevelProcess(Preconditioned()), torch.tensor([0.3, -1.0, 0.3, 1.2], dtype=torch.float64)
    s = t.exp()
    torch.testing.assert_close(process.label(t), t / 4)
    torch.testing.assert_close(process.c_in(t), 1 / (s**2 + 0.25).sqrt())
    torch.testing.assert_close(process.to_x0(t)[1], 0.5 * s / (s**2 + 0.25).sqrt())
    torch.testing.assert_close(process.label(0.5).item(), 0.125)
    generator = torch.Generator().manual_seed(1)
    x_start, noise = torch.randn(2, 4, 1, 2, dtype=torch.float64, generator=generator)
    x_t, output = process.q_sample(x_start, t, noise), process.target(x_start, t, noise)
    torch.testing.assert_close(process.predict_x0(x_t, t, output), x_start)
    torch.testing.assert_close(process.predict_eps(x_t, t, output), noise)
    nodes = process.nodes(3)
    torch.testing.assert_close(nodes.sigma[[0, 2]], torch.tensor([5.0, 0.02], dtype=torch.float64))
    assert isinstance(continuous(Preconditioned()), LevelProcess) and process.prior_std == 5.0


@pytest.mark.parametrize("solver", ["dpm_fast", "probability_flow", "adaptive", "flow"])
def test_networks_are_fed_the_scaled_state(solver):
    """Every solver of continuous time reaches Gaussian data through EDM's scalings."""
    mean, std, process = 0.3, 0.4, LevelProcess(Preconditioned())
    data = Gaussian(mean, std)

    def model(fed, label):
        sigma = (4 * label.double()).exp().view(-1, 1, 1, 1)
        x = fed * (sigma**2 + 0.25).sqrt()
        p_x, p_m = (value.view(-1, 1, 1, 1) for value in process.to_x0(4 * label.double()))
        return (data.denoise(x, torch.ones(len(x)), sigma) - p_x * x) / p_m

    def denoise(x, t):
        fed = process.c_in(t).view(-1, 1, 1, 1) * x
        return process.predict_x0(x, t, model(fed, process.label(t)))

    z = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    x = mean + (5.0**2 + std**2) ** 0.5 * z
    wanted = mean + (0.02**2 + std**2) ** 0.5 * z
    if solver in ("adaptive", "flow"):
        kind = DPMAdaptive if solver == "adaptive" else AdaptiveFlow
        reached = kind(Preconditioned(), rtol=1e-5, atol=1e-5).run(denoise, x, None)
    else:
        kind = dpm_fast if solver == "dpm_fast" else probability_flow
        plan, history = kind(Preconditioned(), 62, denoise=False), x.new_zeros(3, *x.shape)
        for row, time in enumerate(plan.time):
            output = model(plan["c_in"][row] * x, time.expand(2))
            x = ops.reverse_step(x, output, plan.table(dtype=x.dtype), torch.tensor(row), history=history)
        reached = x
    torch.testing.assert_close(reached, wanted, rtol=0, atol=2e-4)
