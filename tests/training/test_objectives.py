"""Every objective: improved-diffusion's recorded numbers, gradients of float64 autograd, score matching."""

import functools
import json
import math

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import rng as streams
from fastdiff.processes import VESDE, VPSDE, NCSNProcess
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Run
from fastdiff.training.objectives import Batch, Objective
from tests.processes.golden import load, network

T = 100


def recorded_batch(recorded, process, monkeypatch):
    """The recorded batch; the noise of its loss is the recorded one."""
    x_start, x_t, noise, t = (recorded[f"cosine100.{name}"] for name in ("x_start", "q_sample", "noise", "t"))
    x_start, x_t, noise = x_start.double(), x_t.double(), noise.double()
    loss = process.loss

    def with_recorded_noise(*arguments, rng, sample_ids, **options):
        return loss(*arguments, noise=noise, **options)

    monkeypatch.setattr(process, "loss", with_recorded_noise, raising=False)
    return Batch(x_start, x_t, t, t, streams.make_rng(0), torch.arange(len(t)), None, None, None)


@pytest.mark.parametrize("prediction", ["eps", "x0", "xprev"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_objectives_are_improved_diffusions(monkeypatch, prediction, variance):
    recorded = load("losses")
    process = GaussianProcess(schedules.cosine(T), prediction, variance)
    batch = recorded_batch(recorded, process, monkeypatch)
    constants = {name: recorded[f"cosine100.model.{name}"] for name in ("a", "a2", "b", "p", "q")}
    output = network(constants, prediction, variance)(batch.x_t, batch.t)
    kind = "hybrid" if variance.startswith("learned") else "simple"
    prefix = f"cosine100.f32.{prediction}.{variance}.rescale0.training_losses"
    for objective, name in ((kind, "rescaled_mse"), ("vlb", "rescaled_kl")):
        found = Objective(process, objective)(output, batch)
        torch.testing.assert_close(found, recorded[f"{prefix}.{name}.loss"].double(), rtol=4e-4, atol=4e-5)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_min_snr_at_zero_terminal_snr(prediction):
    process = GaussianProcess(schedules.zero_terminal_snr(schedules.linear(T)), prediction)
    weights = Objective(process, weighting="min-snr")._table("cpu")
    assert weights.isfinite().all() and weights[-1] == 0 and (weights[:-1] > 0).all()


# ---- Gradients ----


def table_at(process, t, name):
    return getattr(process, name)[t].view(-1, 1, 1, 1)


def plain_objective(process, kind, weighting, m, batch, noise):
    """The formula in PyTorch, float64."""
    x0, C, t = batch.x_start.double() / 127.5 - 1, batch.x_start.shape[1], batch.t
    at = functools.partial(table_at, process, t)
    mean_output = m[:, :C]
    snr = process.snr[t]
    as_eps = {"eps": torch.ones_like(snr), "x0": snr, "v": snr / (snr + 1)}[process.prediction]
    factor = {"uniform": 1.0, "snr": as_eps, "min-snr": as_eps * snr.clamp(max=5) / snr}[weighting]
    simple = factor * (mean_output - at("target_x0") * x0 - at("target_eps") * noise).square().flatten(1).mean(1)
    if kind == "simple":
        return simple
    mean_output = mean_output.detach() if kind == "hybrid" else mean_output
    x_t = batch.x_t.double()
    coefficients = at("posterior_mean_coef1"), at("posterior_mean_coef2")
    guess = coefficients[0] * (at("p_x") * x_t + at("p_m") * mean_output) + coefficients[1] * x_t
    true, l_q = coefficients[0] * x0 + coefficients[1] * x_t, at("posterior_log_variance_clipped")
    l = at("l_0") + at("l_1") * m[:, C:] if m.shape[1] > C else at("model_log_variance")  # noqa: E741
    kl = (l - l_q - 1 + torch.exp(l_q - l) + (true - guess).square() * torch.exp(-l)) / 2
    bound = kl.flatten(1).mean(1) / math.log(2) * process.num_timesteps
    return bound if kind == "vlb" else simple + 0.001 * bound


CASES = [
    *(("simple", weighting, prediction, "fixed_small")
      for weighting in ("uniform", "snr", "min-snr") for prediction in ("eps", "x0", "v")),
    ("vlb", "uniform", "eps", "fixed_large"), ("vlb", "uniform", "v", "learned_range"),
    ("hybrid", "uniform", "eps", "learned_range"), ("hybrid", "min-snr", "x0", "learned"),
]  # fmt: skip


@pytest.mark.parametrize("kind, weighting, prediction, variance", CASES)
def test_gradients(kind, weighting, prediction, variance):
    process = GaussianProcess(schedules.linear(T), prediction, variance)
    generator = torch.Generator().manual_seed(0)
    x_start = torch.randint(0, 256, (6, 3, 4, 4), generator=generator).to(torch.uint8)
    t, ids, rng = torch.tensor([1, 2, 30, 50, 98, 99]), torch.arange(6), streams.make_rng(2, 7)
    x_t = process.q_sample(x_start, t, rng=rng, sample_ids=ids, dtype=torch.float32)
    noise = ops.normal(x_t.shape, rng, ids, stream=streams.TRAINING, dtype=torch.float32).double()
    batch = Batch(x_start, x_t, t, t, rng, ids, None, None, None)
    channels = 6 if variance.startswith("learned") else 3
    output = torch.randn(6, channels, 4, 4, generator=generator)
    leaves = output.clone().requires_grad_(), output.double().requires_grad_()
    found = Objective(process, kind, weighting)(leaves[0], batch)
    expected = plain_objective(process, kind, weighting, leaves[1], batch, noise)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(leaves[0].grad.double(), leaves[1].grad, rtol=1e-4, atol=1e-7)
    assert leaves[0].grad.abs().sum() > 0


# ---- Denoising score matching ----

SDES = [VPSDE(), VPSDE(prediction="score"), VESDE(sigma_max=5.0), NCSNProcess(10, sigma_max=3.0)]


class Net(torch.nn.Module):
    """A line in x and 1 / sigma, of what it is told of the time."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.told = []

    def forward(self, x, t):
        self.told.append(t.clone())
        return self.inner(x)


@pytest.mark.parametrize("process", SDES, ids=repr)
def test_score_matching(process, images, tmp_path):
    """mean((sigma m + eps)^2) where the score is predicted; the network is told process.label(t), or NCSN's level."""
    config = TrainConfig(steps=80, batch_size=20, lr=2e-2, warmup=1, log_every=40, sample_every=0, tensorboard=False)
    run = Run(Net(), process, images, tmp_path / "a", config, {}, False)
    run._fetch()
    batch = run._batch()
    noise = ops.normal(batch.x_t.shape, batch.rng, batch.sample_ids, stream=streams.TRAINING, dtype=torch.float32)
    discrete = isinstance(process, NCSNProcess)
    sigma = (process.sigma[batch.t] if discrete else process.sigma(batch.t)).float().view(-1, 1, 1, 1)
    output = torch.randn_like(noise)
    residual = sigma * output + noise if process.prediction == "score" else output - noise
    torch.testing.assert_close(run.objective(output, batch), residual.square().flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    told = batch.t if discrete else process.label(batch.t).float()
    assert torch.equal(batch.time, told) and batch.time.dtype is (torch.int64 if discrete else torch.float32)
    run.close()


@pytest.mark.parametrize("process", SDES, ids=repr)
def test_a_network_learns_scores(process, images, make_model, tmp_path):
    config = TrainConfig(steps=60, batch_size=20, lr=1e-2, warmup=5, log_every=20, sample_every=0, tensorboard=False)
    train(make_model(), process, images, tmp_path / "a", config, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
