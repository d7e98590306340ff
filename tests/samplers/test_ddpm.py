"""Ancestral sampling: recorded steps and trajectories, and data whose exact noise prediction is known."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.samplers import Plan, ddpm
from tests.processes.golden import error, load, network

SCHEDULES = {"linear": schedules.linear, "cosine": schedules.cosine}


def run_row(plan, row, x, output, noise):
    """One row, with its noise given where the row adds any."""
    noise = noise if plan["std"][row] != 0 else None
    return ops.reverse_step(x, output, plan.table(dtype=x.dtype), torch.tensor(row), noise=noise)


@pytest.mark.parametrize("name, T", [("linear1000", 1000), ("cosine100", 100)])
@pytest.mark.parametrize("kind", ["eps.fixed_small", "x0.fixed_large"])
def test_steps_are_the_recorded_ones_in_float64(backend, name, T, kind):
    """p_sample of improved-diffusion at t = 0, 1, T/2, T - 1, one timestep per sample."""
    recorded, rescaled = load("gaussian"), name == "cosine100"
    prediction, variance = kind.split(".")
    process = GaussianProcess(SCHEDULES[name[:6]](T), prediction, variance)
    x, t, noise = (recorded[f"{name}.{key}"] for key in ("q_sample", "t", "step_noise"))
    constants = {key: recorded[f"{name}.model.{key}"] for key in ("a", "a2", "b")}
    output = network(constants, prediction)(x, t * 10 if rescaled else t)
    stepped = ops.reverse_step(x, output, ddpm(process).table(dtype=x.dtype), T - 1 - t, noise=noise.double())
    assert error(stepped, recorded[f"{name}.{kind}.rescale{int(rescaled)}.p_sample.clip1"]) < 1e-9


@pytest.mark.parametrize("prediction", ["eps", "x0", "xprev"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_steps_are_the_recorded_ones_in_float32(backend, prediction, variance):
    recorded, T = load("gaussian"), 100
    process = GaussianProcess(schedules.cosine(T), prediction, variance)
    x, t, noise = recorded["cosine100.float32.q_sample"], recorded["cosine100.t"], recorded["cosine100.step_noise"]
    constants = {key: recorded[f"cosine100.model.{key}"] for key in ("a", "a2", "b")}
    output = network(constants, prediction)(x, t)
    stepped = ops.reverse_step(x, output, ddpm(process).table(), T - 1 - t, noise=noise)
    assert error(stepped, recorded[f"cosine100.float32.{prediction}.{variance}.p_sample.clip1"]) < 2e-5


@pytest.mark.parametrize("key", ["traj1", "traj2"])
def test_strided_trajectories_are_the_recorded_ones(backend, key):
    """p_sample_loop of improved-diffusion's SpacedDiffusion: the network sees original timesteps, rescaled or not."""
    recorded = load("spaced")
    config = next(trajectory for trajectory in recorded["trajectories"] if trajectory["key"] == key)
    T, timesteps = config["T"], {"10": 10, "ddim10": range(0, config["T"], config["T"] // 10)}[config["respacing"]]
    process = GaussianProcess(SCHEDULES[config["schedule"]](T), config["mean_type"], config["var_type"])
    plan = ddpm(process, timesteps)
    model = network({name: recorded[f"model.{name}"] for name in ("a", "a2", "b")}, config["mean_type"])
    x = recorded[f"{key}.x_T"]
    for row, time in enumerate(plan.time):
        output = model(x, (time * (1000 / T) if config["rescale_timesteps"] else time).expand(len(x)))
        x0 = ops.reverse_step(x, output, plan.estimates().table(), torch.tensor(row))
        x = run_row(plan, row, x, output, recorded[f"{key}.step_noise"][row])
        assert error(x0, recorded[f"{key}.p_sample_loop.pred_xstart"][row]) < 1e-4
        assert error(x, recorded[f"{key}.p_sample_loop.sample"][row]) < 1e-4


DIFFUSERS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "fixed_small_log": "fixed_small"}


@pytest.mark.parametrize("key", ["ddpm0", "ddpm1", "ddpm2", "ddpm5", "ddpm6", "ddpm8", "ddpm9"])
def test_steps_are_those_of_diffusers(backend, key):
    """DDPMScheduler.step in its spacings, predictions and clips: the step before t is the next timestep in the list."""
    recorded = load("diffusers_ddpm")
    config = next(run["config"] for run in recorded["runs"] if run["key"] == key)
    betas = schedules.linear() if config["beta_schedule"] == "linear" else schedules.cosine()
    variance = DIFFUSERS.get(config["variance_type"], config["variance_type"])
    process = GaussianProcess(betas, DIFFUSERS[config["prediction_type"]], variance)
    clip = config["clip_sample_range"] if config["clip_sample"] else None
    plan, x = ddpm(process, recorded[f"{key}.timesteps"], clip=clip), recorded[f"{key}.x"]
    assert torch.equal(plan.time, recorded[f"{key}.timesteps"])
    for row in range(len(plan)):
        stepped = run_row(plan, row, x[row], recorded[f"{key}.model_output"][row], recorded["noise"][row])
        assert error(stepped, x[row + 1]) < 1e-4


def test_no_noise_at_the_last_step_whatever_the_variance():
    for variance in ("fixed_small", "fixed_large"):
        plan = ddpm(GaussianProcess(schedules.linear(100), variance=variance))
        assert plan.time.tolist() == list(range(99, -1, -1))
        assert plan["std"][-1] == 0 and (plan["std"][:-1] > 0).all()
        assert (plan["c_0"][-1], plan["c_x"][-1]) == (pytest.approx(1), 0)


def test_clip():
    process = GaussianProcess(schedules.linear(100))
    assert set(ddpm(process)["bound"].tolist()) == {1.0}
    assert set(ddpm(process, clip=None)["bound"].tolist()) == {math.inf}


# ---- Data N(mean, deviation^2), whose exact predictions are linear in x ----

MEAN, DEVIATION = 0.3, 0.4


def exact_model(process):
    """E[eps | x_t] = sigma (x_t - alpha mean) / (alpha^2 deviation^2 + sigma^2), as the process' prediction."""
    alpha, sigma = process.alpha.float(), process.sigma.float()

    def model(x, t):
        a, s = (table[t].view(-1, 1, 1, 1) for table in (alpha, sigma))
        eps = s * (x - a * MEAN) / (a * a * DEVIATION**2 + s * s)
        x0 = (x - s * eps) / a
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}.get(
            process.prediction, process.target(x0, t, eps)
        )

    return model


def exact_moments(process, plan):
    """Mean and variance after the plan, propagated through x' = c_x x + c_0 E[x_0 | x] + std noise in float64."""
    mean, variance = 0.0, 1.0
    for row in range(len(plan)):
        a, s = (table[plan.time[row]].item() for table in (process.alpha, process.sigma))
        gain = a * DEVIATION**2 / (a * a * DEVIATION**2 + s * s)  # E[x_0 | x] = MEAN + gain (x - a MEAN)
        c_x, c_0, std = (plan[name][row].item() for name in ("c_x", "c_0", "std"))
        slope = c_x + c_0 * gain
        mean, variance = slope * mean + c_0 * (1 - gain * a) * MEAN, slope**2 * variance + std**2
    return mean, variance


def assert_moments(samples, mean, variance, errors=4):
    n = samples.numel()
    assert abs(samples.double().mean().item() - mean) < errors * math.sqrt(variance / n)
    assert abs(samples.double().var().item() / variance - 1) < errors * math.sqrt(2 / n)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [20, 80])
def test_moments_on_gaussian_data(variance, steps):
    process = GaussianProcess(schedules.linear(1000), variance=variance)
    sampler = Sampler(exact_model(process), process, steps=steps, clip=None)
    samples = sampler.sample((512, 1, 32, 32), seed=1)
    expected = exact_moments(process, sampler.plan)
    assert_moments(samples, *expected)
    faulty = {name: sampler.plan[name] for name in ("p_x", "p_m", "c_x", "c_0", "std")}
    for fault in ({"std": faulty["std"] * 1.01}, {"c_x": faulty["c_0"], "c_0": faulty["c_x"]}):
        with pytest.raises(AssertionError):
            assert_moments(samples, *exact_moments(process, Plan(sampler.plan.time, **{**faulty, **fault})))


def test_all_steps_reach_the_data():
    """With every timestep the sampler's own bias is below a percent."""
    for variance in ("fixed_small", "fixed_large"):
        process = GaussianProcess(schedules.linear(1000), variance=variance)
        mean, square = exact_moments(process, ddpm(process, clip=None))
        assert mean == pytest.approx(MEAN, abs=0.002) and math.sqrt(square) == pytest.approx(DEVIATION, rel=0.01)


def test_every_prediction_gives_the_same_samples():
    samples = {}
    for prediction in ("eps", "x0", "v", "score", "xprev"):
        process = GaussianProcess(schedules.linear(100), prediction)
        sampler = Sampler(exact_model(process), process, clip=None)
        samples[prediction] = sampler.sample((2, 1, 8, 8), seed=3)
    for value in samples.values():
        torch.testing.assert_close(value, samples["x0"], rtol=0, atol=1e-4)


def test_first_and_step_noise_come_from_their_streams():
    """A network that predicts x_0 = 0 leaves the noise to see: x = c_x x_T + std z at the first row."""
    process = GaussianProcess(schedules.linear(1000), "x0")
    step = next(Sampler(lambda x, t: torch.zeros_like(x), process, steps=10).stream((2, 1, 4, 4), seed=7))
    ids, plan = torch.arange(2), ddpm(process, 10)
    x_T = ops.normal((2, 1, 4, 4), rng.make_rng(7), ids, stream=rng.INITIAL)
    z = ops.normal((2, 1, 4, 4), rng.make_rng(7), ids, stream=rng.STEP)
    expected = plan["c_x"][0] * x_T.double() + plan["std"][0] * z.double()
    torch.testing.assert_close(step.x.double(), expected, rtol=1e-6, atol=1e-6)
