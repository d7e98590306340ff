"""The variance-exploding view: noise levels, preconditioning, discrete networks seen in it."""

import math

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import Nodes, SigmaProcess, SigmaView, sigmas
from fastdiff.processes.nodes import Point, point_at
from tests.processes.golden import error, load

LEVELS, WRAPPERS = load("kdiffusion"), load("kdiffusion_wrappers")
FAMILIES = {
    "karras": lambda n: sigmas.karras(n, 0.02, 12.0),
    "exponential": lambda n: sigmas.exponential(n, 0.02, 12.0),
    "polyexponential.rho1": lambda n: sigmas.polyexponential(n, 0.02, 12.0),
    "polyexponential.rho2": lambda n: sigmas.polyexponential(n, 0.02, 12.0, rho=2.0),
    "vp": sigmas.vp,
    "vp_custom": lambda n: sigmas.vp(n, beta_d=15.0, beta_min=0.2, eps=0.01),
}


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_the_recorded_ones(family, n):
    torch.testing.assert_close(FAMILIES[family](n), LEVELS[f"sigmas.{family}.n{n}.f64"], rtol=1e-10, atol=0)


def test_bad_families():
    with pytest.raises(ValueError, match=r"sigma_min must be in \(0, sigma_max\), sigma_max finite, got 2 and 1"):
        sigmas.karras(5, 2, 1)
    with pytest.raises(ValueError, match="n must be a positive int, got 0"):
        sigmas.vp(0)


# ---- Networks conditioned on sigma ----


def network(x, t):
    """The recorded wrappers' network: a x + b cos(t / 50) + 0.1 tanh(x of the next channel)."""
    a, b = (WRAPPERS[f"model.{name}"].view(1, -1, 1, 1) for name in "ab")
    return a * x + b * torch.cos(t.double().view(-1, 1, 1, 1) / 50) + 0.1 * torch.tanh(x.roll(-1, 1))


def denoised(process, sigma):
    """x0 of each recorded input at its own noise level."""
    noisy = WRAPPERS["x0"].double() + sigma.double().view(-1, 1, 1, 1) * WRAPPERS["noise"].double()
    rows = []
    for x, level in zip(noisy, sigma.double(), strict=True):
        point = point_at(process, level.item())
        assert (point.alpha, point.sigma) == (1.0, level.item())
        rows.append(point.p_x * x[None] + point.p_m * network(point.c_in * x[None], torch.tensor([point.time])))
    return torch.cat(rows)


@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("kind, prediction", [("openai", "eps"), ("discrete_v", "v")])
def test_discrete_networks_are_denoisers_as_recorded(kind, prediction, quantize):
    view = SigmaView(GaussianProcess(schedules.linear(1000), prediction), quantize=quantize)
    assert error(denoised(view, WRAPPERS["sigma"]), WRAPPERS[f"{kind}.quantize{quantize}.denoised"]) < 2e-5


def test_times_of_noise_levels_are_the_recorded_ones():
    process = GaussianProcess(schedules.linear(1000))
    order = WRAPPERS["sigma"].argsort(descending=True)
    levels = torch.cat([WRAPPERS["sigma"][order].double(), torch.zeros(1)])
    for quantize, dtype in ((0, torch.float64), (1, torch.int64)):
        nodes, expected = SigmaView(process, quantize).nodes(levels), WRAPPERS[f"openai.quantize{quantize}.sigma_to_t"]
        assert nodes.time.dtype is dtype
        torch.testing.assert_close(nodes.time.double(), expected[order].double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("steps, key", [(None, "nNone"), (10, "n10"), (7, "n7")])
def test_noise_levels_of_a_number_of_steps_are_the_recorded_ones(steps, key):
    nodes = SigmaView(GaussianProcess(schedules.linear(1000))).nodes(steps)
    torch.testing.assert_close(nodes.sigma.float(), WRAPPERS[f"openai.get_sigmas.{key}"], rtol=2e-4, atol=0)
    assert nodes.time[0] == pytest.approx(999) and nodes.time[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_preconditioning_is_the_recorded_one(sigma_data):
    process = SigmaProcess("edm", time="sigma", sigma_data=sigma_data)
    prefix = f"karras_precond.sigma_data{sigma_data}.karras"
    for level, *expected in zip(WRAPPERS["sigma"].tolist(), *(WRAPPERS[f"{prefix}.{c}"].tolist() for c in
                                ("c_skip", "c_out", "c_in")), strict=True):  # fmt: skip
        point = point_at(process, level)
        assert (point.p_x, point.p_m, point.c_in) == tuple(pytest.approx(value, rel=1e-5) for value in expected)
    assert error(denoised(process, WRAPPERS["sigma"]), WRAPPERS[f"{prefix}.denoised"]) < 2e-5


def test_v_of_sigma_is_the_recorded_denoiser():
    process = SigmaProcess("v", sigma_data=1.0)
    levels = torch.cat([WRAPPERS["sigma"].sort(descending=True)[0].double(), torch.zeros(1)])
    expected = WRAPPERS["v.sigma_to_t"].sort(descending=True)[0].double()
    torch.testing.assert_close(process.nodes(levels).time, expected, rtol=1e-6, atol=0)
    assert error(denoised(process, WRAPPERS["sigma"]), WRAPPERS["v.denoised"]) < 2e-5


@pytest.mark.parametrize("prediction", ["edm", "v", "x0", "eps", "score"])
def test_sigma_predictions_recover_x0(prediction):
    """With the target that each prediction stands for."""
    process, x0, noise = SigmaProcess(prediction, sigma_data=0.7), 0.4, -1.3
    for point in process.nodes(6).points()[:-1]:
        s, d = point.sigma, 0.7
        norm, x = math.hypot(s, d), x0 + s * noise
        target = {"edm": (x0 - d * d / norm**2 * x) * norm / (s * d), "v": (d * d / norm**2 * x - x0) * norm / (s * d),
                  "x0": x0, "eps": noise, "score": -noise / s}[prediction]  # fmt: skip
        assert point.p_x * x + point.p_m * target == pytest.approx(x0, rel=1e-9)


def test_times_of_edm():
    """c_noise = log(sigma) / 4 for EDM's networks, sigma itself for denoisers."""
    assert SigmaProcess().nodes([2.0, 1.0, 0.0]).time.tolist() == pytest.approx([math.log(2) / 4, 0.0])
    assert SigmaProcess("x0").nodes([2.0, 1.0, 0.0]).time.tolist() == [2.0, 1.0]
    nodes = SigmaProcess().nodes()
    assert len(nodes.time) == 18 and nodes.sigma[0] == pytest.approx(80) and nodes.sigma[17] == pytest.approx(0.002)


# ---- Nodes ----


def test_nodes_of_a_discrete_process():
    process = GaussianProcess(schedules.linear(1000), "v")
    nodes = process.nodes([900, 100, 500])
    assert nodes.time.tolist() == [900, 500, 100] and nodes.time.dtype is torch.int64 and nodes.start == 1
    torch.testing.assert_close(nodes.alpha, torch.tensor([*process.alpha[[900, 500, 100]], 1], dtype=torch.float64))
    torch.testing.assert_close(nodes.p_m[:-1], process.p_m[[900, 500]], rtol=1e-12, atol=0)
    points = nodes.points()
    assert points[-1] == Point(1.0, 0.0) and points[-1].half_logsnr == math.inf and points[-1].noise_level == 0
    assert points[1].time == 500 and points[1].half_logsnr == pytest.approx(process.logsnr[500].item() / 2)
    assert [at.time for at, _ in nodes.steps()] == [900, 500, 100] and nodes.steps()[0][1] == points[1]
    ended = process.nodes([900, 500], end=0)
    assert (ended.alpha[-1], ended.sigma[-1]) == (process.alpha[0], process.sigma[0])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_points_between_timesteps(prediction):
    """At a timestep's own noise level a fractional point is that timestep; the view is it divided by alpha."""
    process = GaussianProcess(schedules.linear(1000), prediction).respace(50)
    exact, between = process.nodes(), process.through(torch.cat([process.noise_level.flip(0), torch.zeros(1)]))
    view = SigmaView(process).nodes(exact.noise_level)
    torch.testing.assert_close(between.time, exact.time.double(), rtol=1e-9, atol=1e-9)
    for name in ("alpha", "sigma", "p_x", "p_m"):
        torch.testing.assert_close(getattr(between, name), getattr(exact, name), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(view.c_in, exact.alpha[:-1], rtol=1e-9, atol=0)
    torch.testing.assert_close(view.p_x, exact.p_x * exact.alpha[:-1], rtol=1e-9, atol=1e-12)
    assert torch.equal(view.alpha, torch.ones(51, dtype=torch.float64)) and view.start == view.sigma[0]


def test_points_of_a_process_in_continuous_time():
    """Which has time_at, the inverse of its noise level, and nodes of times."""

    class Exploding:
        def time_at(self, noise_level):
            return noise_level.log()

        def nodes(self, times):
            one = torch.ones(1, dtype=torch.float64)
            return Nodes(times, torch.cat([one, one]), torch.cat([times.exp(), 0 * one]), one, -times.exp(), one)

    point = point_at(Exploding(), 2.0)
    assert point.time == pytest.approx(math.log(2)) and (point.sigma, point.p_m) == pytest.approx((2.0, -2.0))


def test_no_signal_is_an_infinite_noise_level():
    process = GaussianProcess(schedules.zero_terminal_snr(schedules.linear(100)), "v")
    first = process.nodes(5).points()[0]
    assert first.noise_level == math.inf and first.half_logsnr == -math.inf
    assert SigmaView(process).sigma_max < math.inf


@pytest.mark.parametrize("levels, message", [
    ([1.0], r"timesteps must be \[S \+ 1\] noise levels with S at least 1, got shape \[1\]"),
    ([1.0, 1.0, 0.0], r"timesteps must be finite, fall strictly and end at or above 0, got \[1.0, 1.0, 0.0\]"),
    ([math.inf, 1.0], "timesteps must be finite, fall strictly"),
    ([1.0, -1.0], "timesteps must be finite, fall strictly and end at or above 0"),
])  # fmt: skip
def test_bad_levels(levels, message):
    for process in (SigmaProcess(), SigmaView(GaussianProcess(schedules.linear(50)))):
        with pytest.raises(ValueError, match=message):
            process.nodes(levels)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="prediction must be one of edm, v, x0, eps, score, got 'xprev'"):
        SigmaProcess("xprev")
    with pytest.raises(ValueError, match="time must be one of log, sigma, angle, or None, got 't'"):
        SigmaProcess(time="t")
    with pytest.raises(ValueError, match=r"sigma_min must be in \(0, sigma_max\)"):
        SigmaProcess(sigma_min=0)
    with pytest.raises(ValueError, match="sigma_data must be finite and positive, got 0"):
        SigmaProcess(sigma_data=0)
    with pytest.raises(TypeError, match="timesteps must be numbers, got str"):
        SigmaProcess().nodes("10")
    process = GaussianProcess(schedules.linear(50), "xprev")
    with pytest.raises(ValueError, match="process must not predict 'xprev'"):
        SigmaView(process)
    for end in (-1, 50, True):
        with pytest.raises(ValueError, match=rf"end must be in \[0, 50\), got {end}"):
            process.nodes(end=end)
    with pytest.raises(ValueError, match="end must not be above the timestep 20 of the run, got 21"):
        process.nodes([40, 20], end=21)
    assert process.nodes([40, 20], end=20).alpha[-1] == process.alpha[20]
    with pytest.raises(ValueError, match="timesteps must be a positive int, or noise levels, got 0"):
        SigmaView(GaussianProcess(schedules.linear(50))).nodes(0)
    with pytest.raises(TypeError, match="process must have a method through or time_at for this solver, got <object"):
        point_at(object(), 1.0)


def test_views_and_nodes_show_what_they_are():
    assert repr(SigmaProcess()).startswith("SigmaProcess(prediction='edm', time='log', sigma_min=0.002")
    assert "quantize=True" in repr(SigmaView(GaussianProcess(schedules.linear(50)), quantize=True))
    assert isinstance(SigmaProcess().nodes(np.array([1.0, 0.5])), Nodes)
