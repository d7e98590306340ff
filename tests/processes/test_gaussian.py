"""GaussianProcess: tables, noising, posterior, respacing."""

import copy
import pickle

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from tests.processes.golden import error, load

TABLES = [name for name, value in vars(GaussianProcess([0.1, 0.2])).items() if isinstance(value, torch.Tensor)]
FILES = {"linear1000": schedules.linear(1000), "cosine100": schedules.cosine(100)}


@pytest.fixture(scope="module")
def recorded():
    return load("gaussian")


@pytest.mark.parametrize("name", FILES)
def test_q_sample_and_posterior_are_the_recorded_ones(recorded, name):
    process = GaussianProcess(FILES[name])
    x_start, noise, t, x_t = (recorded[f"{name}.{key}"] for key in ("x_start", "noise", "t", "q_sample"))
    assert error(process.q_sample(x_start.double(), t, noise.double()), x_t) < 1e-9
    assert error(process.q_sample(x_start, t, noise), x_t) < 2e-5
    posterior = process.posterior(x_start.double(), x_t, t)
    assert error(posterior.mean, recorded[f"{name}.q_posterior.mean"]) < 1e-9
    for value, key in ((posterior.variance, "variance"), (posterior.log_variance_clipped, "log_variance")):
        expected = recorded[f"{name}.q_posterior.{key}"]
        torch.testing.assert_close(value.expand_as(expected), expected, rtol=1e-9, atol=1e-300)
    assert posterior.variance.flatten()[0] == 0 and posterior.log_variance_clipped.isfinite().all()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_variance_of_a_reverse_step_is_the_recorded_one(recorded, name, variance):
    process, t = GaussianProcess(FILES[name], variance=variance), recorded[f"{name}.t"]
    kind = "eps" if variance == "fixed_small" else "x0"
    prefix = f"{name}.{kind}.{variance}.rescale{int(name == 'cosine100')}.p_mean_variance.clip1"
    for table, key in ((process.model_variance, "variance"), (process.model_log_variance, "log_variance")):
        torch.testing.assert_close(table[t], recorded[f"{prefix}.{key}"][:, 0, 0, 0], rtol=1e-9, atol=1e-300)
    assert process.std[0] == 0 and (process.std[1:] > 0).all()


def test_tables_agree_with_their_definitions():
    p = GaussianProcess(schedules.linear(1000), variance="fixed_large")
    torch.testing.assert_close(p.alpha.square() + p.sigma.square(), torch.ones_like(p.betas), rtol=1e-15, atol=0)
    torch.testing.assert_close(p.sigma[0], p.betas[0].sqrt(), rtol=1e-15, atol=0)
    torch.testing.assert_close(p.snr, p.alpha.square() / p.sigma.square())
    torch.testing.assert_close(p.logsnr, p.snr.log())
    torch.testing.assert_close(p.noise_level, p.snr.rsqrt())
    assert torch.equal(p.alphas_cumprod_prev[1:], p.alphas_cumprod[:-1]) and p.alphas_cumprod_prev[0] == 1
    assert p.model_variance[0] == pytest.approx(p.posterior_variance[1].item(), rel=1e-14)
    assert torch.equal(p.model_variance[1:], p.betas[1:])
    assert p.posterior_log_variance_clipped[0] == p.posterior_log_variance_clipped[1]


def test_posterior_composes_to_the_marginal():
    """Averaging q(x_{t-1} | x_t, x_0) over q(x_t | x_0) gives q(x_{t-1} | x_0)."""
    p = GaussianProcess(schedules.cosine(200))
    mean = p.posterior_mean_coef1 + p.posterior_mean_coef2 * p.alpha
    torch.testing.assert_close(mean, p.alphas_cumprod_prev.sqrt(), rtol=1e-12, atol=0)
    variance = p.posterior_mean_coef2.square() * p.sigma.square() + p.posterior_variance
    torch.testing.assert_close(variance, 1 - p.alphas_cumprod_prev, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_q_sample_adds_noise_at_every_timestep_whatever_the_dtype(dtype):
    """sqrt(1 - alphas_cumprod) looked up in a bfloat16 table is 0 at the first timesteps."""
    p = GaussianProcess(schedules.linear(1000))
    t = torch.arange(1000)
    x_t = p.q_sample(torch.zeros(1000, 1, 1, 1, dtype=dtype), t, torch.ones(1000, 1, 1, 1, dtype=dtype))
    assert x_t.dtype is dtype
    torch.testing.assert_close(x_t.flatten().double(), p.sigma, rtol=2.0**-8, atol=0)


def test_q_sample_of_uint8_images_draws_noise_by_sample_id():
    p = GaussianProcess(schedules.linear(1000))
    x_start = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    t, key, ids = torch.tensor([0, 500, 999]), ops.rng.make_rng(5), torch.tensor([7, 8, 9])
    x_t, noise = p.q_sample(x_start, t, rng=key, sample_ids=ids, return_noise=True)
    a, s = (table[t].view(-1, 1, 1, 1) for table in (p.alpha, p.sigma))
    torch.testing.assert_close(x_t.double(), a * (x_start.double() / 127.5 - 1) + s * noise.double(), rtol=0, atol=5e-7)
    assert torch.equal(p.q_sample(x_start[1:2], t[1:2], rng=key, sample_ids=ids[1:2]), x_t[1:2])


@pytest.mark.parametrize("spec", ["linear_1000.10", "linear_1000.25", "linear_1000.ddim10", "cosine_1000.10",
                                  "linear_300.10,15,20", "cosine_4000.25"])  # fmt: skip
def test_respaced_tables_are_the_recorded_ones(spec):
    recorded = load("spaced")
    name, T = spec.split(".")[0].split("_")
    kept = recorded[f"spaced.{spec}.timestep_map"]
    process = GaussianProcess(getattr(schedules, name)(int(T))).respace(kept)
    assert torch.equal(process.timestep_map, kept) and process.num_timesteps == len(kept)
    for table in ("betas", "alphas_cumprod", "posterior_log_variance_clipped"):
        torch.testing.assert_close(getattr(process, table), recorded[f"spaced.{spec}.{table}"], rtol=1e-10, atol=1e-300)


def test_respacing_keeps_marginals_and_original_timesteps():
    process = GaussianProcess(schedules.cosine(100), prediction="v", variance="fixed_large")
    once = process.respace(range(0, 100, 10))
    twice = once.respace({9, 0, 3})
    assert twice.timestep_map.tolist() == [0, 30, 90]
    assert (twice.prediction, twice.variance) == ("v", "fixed_large")
    torch.testing.assert_close(twice.alphas_cumprod, process.alphas_cumprod[[0, 30, 90]], rtol=1e-12, atol=0)
    assert process.respace(10).timestep_map.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    everything = process.respace(np.arange(100)[::-1])
    torch.testing.assert_close(everything.betas, process.betas, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_process_of_one_step(variance):
    process = GaussianProcess([0.3], variance=variance)
    assert process.std.tolist() == [0] and process.posterior_mean_coef1.tolist() == pytest.approx([1])
    assert process.model_log_variance.tolist() == pytest.approx([np.log(0.3)])


@pytest.mark.parametrize("betas", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2]).double()])
def test_any_array_of_betas(betas):
    process = GaussianProcess(betas)
    assert process.betas.dtype is torch.float64
    assert process.betas.tolist() == list(betas)


def test_the_process_keeps_a_copy_of_betas():
    betas = schedules.linear(20) / 2
    process = GaussianProcess(betas)
    betas.zero_()
    assert (process.betas > 0).all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda process: pickle.loads(pickle.dumps(process))])
def test_copies_are_equal_and_leave_device_tables_behind(duplicate):
    process = GaussianProcess(schedules.linear(50), "v", "fixed_large").respace(10)
    size = len(pickle.dumps(process))
    process.table("alpha", "cpu")
    twin = duplicate(process)
    assert len(pickle.dumps(twin)) == size
    assert repr(twin) == repr(process) == "GaussianProcess(10 timesteps, prediction='v', variance='fixed_large')"
    for table in TABLES:
        assert torch.equal(getattr(twin, table), getattr(process, table))


def test_device_tables_are_made_once_and_can_be_trained_with():
    process = GaussianProcess(schedules.linear(50))
    with torch.inference_mode():
        table = process.table("alpha", "cpu")
    assert process.table("alpha", torch.device("cpu")) is table and not table.is_inference()
    assert table.dtype is torch.float32 and process.table("alpha", "cpu", torch.float64).dtype is torch.float64


def test_a_process_made_under_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        process = GaussianProcess(schedules.linear(50))
    m, x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    process.loss(m, x, torch.tensor([3]), x).sum().backward()
    assert torch.equal(m.grad, torch.full_like(m, 0.5))


@pytest.mark.parametrize("betas, message", [
    ([[0.1]], r"betas must have shape \[T\] with T at least 1, got \[1, 1\]"),
    ([], r"betas must have shape \[T\] with T at least 1, got \[0\]"),
    ([0.1, 0.0], r"betas must be in \(0, 1\], got 0.0 at t = 1"),
    ([1.1], r"betas must be in \(0, 1\], got 1.1 at t = 0"),
    ([0.1, float("nan")], r"betas must be in \(0, 1\], got nan at t = 1"),
])  # fmt: skip
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        GaussianProcess(betas)


def test_other_bad_arguments():
    betas = schedules.linear(50)
    with pytest.raises(TypeError, match="betas must be an array of numbers, got str"):
        GaussianProcess("linear")
    with pytest.raises(ValueError, match="prediction must be one of eps, x0, v, score, xprev, got 'epsilon'"):
        GaussianProcess(betas, prediction="epsilon")
    with pytest.raises(ValueError, match="variance must be one of fixed_small, fixed_large, learned,"):
        GaussianProcess(betas, variance="small")
    with pytest.raises(ValueError, match=r"timestep_map must be int64 of shape \[50\], got torch.int64 of shape \[3\]"):
        GaussianProcess(betas, timestep_map=[1, 2, 3])
    process = GaussianProcess(betas)
    for timesteps, kind, message in (
        ([], ValueError, "timesteps must hold at least one timestep"),
        ([50], ValueError, r"timesteps must be in \[0, 50\), got 50"),
        ([-1, 3], ValueError, r"timesteps must be in \[0, 50\), got -1"),
        ([3, 3], ValueError, r"timesteps must be distinct, got \[3, 3\]"),
        ([0.5], TypeError, "timesteps must be ints, or the number of them"),
        (51, ValueError, r"steps must be an int in \[1, 50\], got 51"),
    ):
        with pytest.raises(kind, match=message):
            process.respace(timesteps)


def test_bad_tensors():
    process, x, t = GaussianProcess(schedules.linear(50)), torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"model_output must be a floating tensor, got torch.int64"):
        process.predict_x0(x, t, x.long())
    with pytest.raises(TypeError, match=r"x_start must be a floating tensor, got float"):
        process.posterior(1.0, x, t)
    with pytest.raises(ValueError, match=r"x_t must have shape \[2, 1, 2, 2\], got \[2, 1, 2, 3\]"):
        process.posterior(x, torch.zeros(2, 1, 2, 3), t)
    with pytest.raises(ValueError, match=r"t must be int64 of shape \[2\], got int"):
        process.predict_x0(x, 1, x)
    with pytest.raises(ValueError, match=r"t must be int64 of shape \[2\], got torch.int64 \[1\]"):
        process.predict_eps(x, t[:1], x)
    for wrong in (-1, 50):
        with pytest.raises(IndexError, match=rf"t must be in \[0, 50\), got {wrong}"):
            process.posterior(x, x, torch.tensor([0, wrong]))
        with pytest.raises(IndexError, match=r"t"):
            process.q_sample(x, torch.tensor([0, wrong]), x)
