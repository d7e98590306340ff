"""Schedules and spacing against recorded tables."""

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import spacing
from tests.processes.golden import load

TABLES = ("alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1",
          "posterior_mean_coef2")  # fmt: skip


@pytest.mark.parametrize("name, T", [("linear", 1000), ("linear", 4000), ("linear", 100), ("cosine", 1000),
                                     ("cosine", 4000), ("cosine", 50)])  # fmt: skip
def test_tables_are_the_recorded_ones(name, T):
    recorded = load("schedules")
    betas = getattr(schedules, name)(T)
    assert betas.shape == (T,) and betas.dtype is torch.float64
    process, index = GaussianProcess(betas), recorded[f"{name}_{T}.index"]
    torch.testing.assert_close(betas[index], recorded[f"{name}_{T}.betas"], rtol=1e-10, atol=0)
    for table in TABLES:
        expected = recorded[f"{name}_{T}.{table}"]
        torch.testing.assert_close(getattr(process, table)[index], expected, rtol=1e-10, atol=1e-300)


def test_ends_of_the_linear_schedule():
    assert schedules.linear()[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-15)
    assert schedules.linear(20)[-1] == 1


def test_the_cap_of_the_cosine_schedule_acts_on_its_end():
    assert (schedules.cosine(1000) == 0.999).sum() == 1
    assert (schedules.cosine(1000, max_beta=0.5) == 0.5).sum() > 1


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("T", [0, -1, True])
def test_T_must_be_positive(schedule, T):
    with pytest.raises(ValueError, match=f"T must be a positive int, got {T}"):
        schedule(T)


def test_other_bad_arguments():
    with pytest.raises(TypeError, match=r"T must be a positive int, got 10\.0"):
        schedules.cosine(10.0)
    with pytest.raises(ValueError, match=r"T must be at least 20.* got 19"):
        schedules.linear(19)
    with pytest.raises(ValueError, match=r"max_beta must be in \(0, 1\], got 2"):
        schedules.cosine(10, max_beta=2)


def test_even_spacing_is_the_recorded_one():
    recorded = [case for case in load("spaced")["space_timesteps"] if case["error"] is None]
    cases = [case for case in recorded if isinstance(case["section_counts"], str) and case["section_counts"].isdigit()]
    assert len(cases) >= 6
    for case in cases:
        assert spacing.even(case["num_timesteps"], int(case["section_counts"])).tolist() == case["timesteps"]


@pytest.mark.parametrize("steps", [0, 11, True])
def test_steps_must_fit(steps):
    with pytest.raises(ValueError, match=rf"steps must be an int in \[1, 10\], got {steps}"):
        spacing.even(10, steps)


# ---- Schedules of other libraries ----


@pytest.mark.parametrize("name, betas", [
    ("linear", schedules.linear(1000, scaled=False)),
    ("scaled_linear", schedules.scaled_linear()),
    ("cosine", schedules.cosine()),
    ("sigmoid", schedules.sigmoid_betas()),
    ("zsnr", schedules.zero_terminal_snr(schedules.linear(1000, scaled=False))),
])  # fmt: skip
def test_schedules_of_diffusers(name, betas):
    """Its tables are float32: 1 - x of x near 1 has steps of 6e-8, of which a few come together."""
    recorded = load("diffusers_solvers")
    assert betas.dtype is torch.float64 and betas.shape == (1000,)
    torch.testing.assert_close(betas, recorded[f"table.{name}.betas"].double(), rtol=1e-4, atol=3e-7)
    alphas_cumprod = torch.log1p(-betas).cumsum(0).exp()
    torch.testing.assert_close(alphas_cumprod, recorded[f"table.{name}.alphas_cumprod"].double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name, betas, rtol", [
    ("sigmoid1000", schedules.sigmoid(1000), 2e-5),  # the peer rounds two values to float32
    ("sigmoid100_tau", schedules.sigmoid(100, start=0, end=3, tau=0.7), 2e-5),
    ("cosine1000", schedules.cosine(1000), 1e-10),
    ("linear200", schedules.linear(200), 1e-10),
])  # fmt: skip
def test_schedules_of_lucidrains(name, betas, rtol):
    torch.testing.assert_close(betas, load("lucidrains")[f"table.{name}.betas_f64"], rtol=rtol, atol=0)


def test_linear_as_given_has_its_ends_at_any_T():
    """Where OpenAI and lucidrains scale by 1000 / T, diffusers takes beta_start and beta_end as they are."""
    betas = schedules.linear(10, 0.001, 0.5, scaled=False)
    assert betas[[0, -1]].tolist() == pytest.approx([0.001, 0.5], rel=1e-15)
    assert torch.equal(schedules.linear(1000), schedules.linear(1000, scaled=False))
    torch.testing.assert_close(schedules.linear(500), 2 * schedules.linear(500, scaled=False), rtol=1e-15, atol=0)


def test_zero_terminal_snr():
    betas = schedules.linear(1000)
    rescaled = schedules.zero_terminal_snr(betas)
    process = GaussianProcess(rescaled, "v")
    assert rescaled[-1] == 1 and rescaled[0] == betas[0] and (rescaled[:-1] < 1).all()
    assert process.alpha[-1] == 0 and process.sigma[-1] == 1
    # An affine map of alpha.
    before = GaussianProcess(betas).alpha
    slope = (process.alpha[0] - process.alpha[500]) / (before[0] - before[500])
    torch.testing.assert_close(process.alpha, (before - before[-1]) * slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call, message", [
    (lambda: schedules.linear(100, 0.2, 0.1), r"beta_start must be in \(0, beta_end\].*, got 0.2 and 0.1"),
    (lambda: schedules.scaled_linear(100, 0.0, 0.1), r"beta_start must be in \(0, beta_end\]"),
    (lambda: schedules.sigmoid_betas(100, 0.1, 1.5), r"beta_end at most 1, got 0.1 and 1.5"),
    (lambda: schedules.sigmoid(100, start=3, end=-3), "start must be below end and tau positive, got 3, -3 and 1.0"),
    (lambda: schedules.sigmoid(100, tau=0), "start must be below end and tau positive"),
    (lambda: schedules.sigmoid(100, max_beta=0), r"max_beta must be in \(0, 1\], got 0"),
    (lambda: schedules.zero_terminal_snr([0.1]), r"betas must be \[T\] numbers in \(0, 1\] with T at least 2"),
    (lambda: schedules.zero_terminal_snr([0.1, -0.1]), r"betas must be \[T\] numbers in \(0, 1\]"),
])  # fmt: skip
def test_bad_schedules(call, message):
    with pytest.raises(ValueError, match=message):
        call()
