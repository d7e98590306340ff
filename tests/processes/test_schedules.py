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
