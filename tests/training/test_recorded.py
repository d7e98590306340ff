"""Objectives against numbers recorded by running improved-diffusion on respaced processes, and lucidrains 2.3.4."""

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.ops import rng as streams
from fastdiff.training.objectives import Batch, Objective
from tests.processes.golden import load, network

RECORDED = load("objectives")


def recorded_loss(process, noise, monkeypatch):
    """The process, whose loss takes the recorded noise."""
    loss = process.loss
    monkeypatch.setattr(process, "loss", lambda *a, rng, sample_ids, **k: loss(*a, noise=noise, **k), raising=False)
    return process


def batch_of(process, x_start, noise, t):
    x_t = process.q_sample(x_start, t, noise)
    return Batch(x_start, x_t, t, t, streams.make_rng(0), torch.arange(len(t)), None, None, None)


@pytest.mark.parametrize("case", RECORDED["spaced.trajectories"], ids=lambda case: case["key"])
def test_respaced_objectives_are_improved_diffusions(case, monkeypatch):
    key, T = f"spaced.{case['key']}", case["T"]
    betas = getattr(schedules, case["schedule"])(T)
    process = GaussianProcess(betas, case["mean_type"], case["var_type"]).respace(case["respacing"])
    x_start, noise, t = (RECORDED[f"{key}.{name}"] for name in ("x_start", "noise", "t"))
    recorded_loss(process, noise, monkeypatch)
    batch = batch_of(process, x_start, noise, t)
    time = process.timestep_map[t] * (1000 / T if case["rescale_timesteps"] else 1)
    constants = {name: RECORDED[f"spaced.model.{name}"] for name in ("a", "a2", "b", "p", "q")}
    output = network(constants, case["mean_type"], case["var_type"])(batch.x_t, time)
    kind = "hybrid" if case["var_type"].startswith("learned") else "simple"
    expected = RECORDED[f"{key}.training_losses.rescaled_mse.loss"]
    torch.testing.assert_close(Objective(process, kind)(output, batch), expected, rtol=4e-4, atol=4e-5)


OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}


@pytest.mark.parametrize("case", RECORDED["lucidrains.cases"], ids=lambda case: case["key"])
def test_weighted_objectives_are_lucidrains(case, monkeypatch):
    """Its weights of every timestep, and the weighted loss of each sample; the kinds of prediction by its names."""
    key, prediction = f"lucidrains.{case['key']}", OBJECTIVES[case["objective"]]
    process = GaussianProcess(RECORDED[f"{key}.betas"].double(), prediction)
    weighting = "min-snr" if case["min_snr_loss_weight"] else "snr"
    objective = Objective(process, "simple", weighting, float(case["min_snr_gamma"]))
    weight = objective._table(torch.device("cpu"))
    torch.testing.assert_close(weight, RECORDED[f"{key}.loss_weight"], rtol=2e-4, atol=1e-7)
    noise, t = RECORDED["lucidrains.noise"], RECORDED["lucidrains.t"]
    batch = batch_of(process, 2 * RECORDED["lucidrains.img01"] - 1, noise, t)
    recorded_loss(process, noise, monkeypatch)
    a, b = (RECORDED[f"lucidrains.model.{name}"].view(1, -1, 1, 1) for name in ("a", "b"))
    x = batch.x_t
    output = a * x + b * torch.cos(t.view(-1, 1, 1, 1) / 50) + 0.1 * torch.tanh(x.roll(-1, 1))
    torch.testing.assert_close(objective(output, batch), RECORDED[f"{key}.loss_per_sample"], rtol=4e-4, atol=1e-6)
