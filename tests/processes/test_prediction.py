"""What a network predicts: every kind says the same of x_0 and the noise."""

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes.prediction import KINDS
from tests.processes.golden import error, load, network

T = 1000


def drawn(T=T):
    generator = torch.Generator().manual_seed(0)
    x_start, noise = (torch.randn(T, 2, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return x_start, noise, torch.arange(T)


@pytest.mark.parametrize("prediction", KINDS)
def test_conversions_are_exact_inverses(prediction):
    process = GaussianProcess(schedules.linear(T), prediction)
    x_start, noise, t = drawn()
    x_t = process.q_sample(x_start, t, noise)
    output = process.target(x_start, t, noise)
    for value, expected, coefficients in (
        (process.predict_x0(x_t, t, output), x_start, (process.p_x, process.p_m)),
        (process.predict_eps(x_t, t, output), noise, (process.e_x, process.e_m)),
    ):
        condition = 1 + coefficients[0].abs() + coefficients[1].abs()
        assert ((value - expected).abs().amax((1, 2, 3)) / condition).max() < 1e-13


def test_targets_by_their_formulas():
    x_start, noise, t = drawn()
    processes = {kind: GaussianProcess(schedules.linear(T), kind) for kind in KINDS}
    p = processes["eps"]
    a, s = (table.view(-1, 1, 1, 1) for table in (p.alpha, p.sigma))
    x_t = a * x_start + s * noise
    expected = {"eps": noise, "x0": x_start, "v": a * noise - s * x_start, "score": -noise / s,
                "xprev": p.posterior(x_start, x_t, t).mean}  # fmt: skip
    for kind, value in expected.items():
        assert error(processes[kind].target(x_start, t, noise), value) < 1e-12


@pytest.mark.parametrize("name, T", [("linear1000", 1000), ("cosine100", 100)])
@pytest.mark.parametrize("kind", ["eps.fixed_small", "x0.fixed_large", "xprev.learned"])
def test_estimates_are_the_recorded_ones(name, T, kind):
    recorded = load("gaussian")
    prediction, rescaled = kind.split(".")[0], name == "cosine100"
    schedule = schedules.linear if name == "linear1000" else schedules.cosine
    process = GaussianProcess(schedule(T), prediction)
    constants = {key: recorded[f"{name}.model.{key}"] for key in ("a", "a2", "b")}
    x, t = recorded[f"{name}.q_sample"], recorded[f"{name}.t"]
    output = network(constants, prediction)(x, t * (1000 / T) if rescaled else t)
    x0, prefix = process.predict_x0(x, t, output), f"{name}.{kind}.rescale{int(rescaled)}.p_mean_variance"
    assert error(x0, recorded[f"{prefix}.clip0.pred_xstart"]) < 1e-9
    if prediction == "xprev":
        assert error(output, recorded[f"{prefix}.clip1.mean"]) < 1e-9
    else:
        mean = process.posterior(x0.clamp(-1, 1), x, t).mean
        assert error(mean, recorded[f"{prefix}.clip1.mean"]) < 1e-9


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_inputs_give_float32_results(prediction, dtype):
    process = GaussianProcess(schedules.linear(T), prediction)
    x, output = (torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    t = torch.tensor([0, 10, 500, 999])
    x0, exact = process.predict_x0(x, t, output), process.predict_x0(x.double(), t, output.double())
    assert x0.dtype is torch.float32 and exact.dtype is torch.float64
    scale = (process.p_x.abs() + process.p_m.abs())[t].view(-1, 1, 1, 1)
    assert ((x0 - exact).abs() / scale).max() < 1e-6


def test_estimates_are_differentiable():
    process, t = GaussianProcess(schedules.linear(T), "v"), torch.tensor([3, 700])
    x, output = (torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, output: process.predict_x0(x, t, output), (x, output))


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_zero_terminal_snr_takes_the_limits(prediction):
    betas = torch.cat([schedules.linear(50)[:-1] / 2, torch.ones(1, dtype=torch.float64)])
    process = GaussianProcess(betas, prediction)
    assert process.alphas_cumprod[-1] == 0 and process.logsnr[-1] == -torch.inf and process.snr[-1] == 0
    x_start, noise, t = drawn(50)
    x_t, output = process.q_sample(x_start, t, noise), process.target(x_start, t, noise)
    assert torch.equal(x_t[-1], noise[-1])
    assert error(process.predict_x0(x_t, t, output), x_start) < 1e-12
    assert process.respace([0, 49]).alphas_cumprod[-1] == 0


@pytest.mark.parametrize("prediction", ["eps", "score", "xprev"])
def test_zero_terminal_snr_leaves_x0_unknown(prediction):
    with pytest.raises(ValueError, match=rf"prediction must be 'v' or 'x0' where .*, got '{prediction}'"):
        GaussianProcess([0.1, 1.0], prediction)
