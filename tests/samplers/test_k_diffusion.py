"""Every recorded trajectory of k-diffusion, on a mixture's exact denoiser, as rows of plans."""

import math

import pytest
import torch

from fastdiff.processes import SigmaProcess
from fastdiff.samplers import SOLVERS
from tests.processes.golden import error, load
from tests.samplers.runs import rows_of_noise, states

RECORDED = load("kdiffusion")
RUNS = {run["key"]: run for run in RECORDED["runs"]}
TWO_STAGES = ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")


def mixture(x, sigma):
    """E[x_0 | x_0 + sigma * noise = x], elementwise."""
    weight, mean, std = (RECORDED[f"mixture.{name}"].view(2, 1, 1, 1, 1) for name in ("weight", "mean", "std"))
    sigma, y = sigma.double().view(-1, 1, 1, 1), x.double()
    variance = std.square() + sigma.square()
    share = (weight.log() - (y - mean).square() / (2 * variance) - variance.log() / 2).softmax(0)
    return (share * (std.square() * y + sigma.square() * mean) / variance).sum(0).to(x.dtype)


def noise_by_row(plan, name, sigmas, kwargs):
    """The recorded draws of the rows that add noise: one a step, but for dpmpp_sde, whose second is made ours."""
    noise, rows = RECORDED["noise"], rows_of_noise(plan)
    if "s_churn" in kwargs:
        noisy = [i for i, sigma in enumerate(sigmas[:-1]) if kwargs["s_tmin"] <= sigma <= kwargs["s_tmax"]]
        return dict(zip(rows, noise[noisy], strict=True))
    if name != "dpmpp_sde":
        return {row: noise[row // 2 if name in TWO_STAGES else row] for row in rows}
    given = {}
    for row in rows:
        first, second = noise[row - row % 2], noise[row - row % 2 + 1]
        sigma, mid, following = sigmas[row // 2], plan.time[row - row % 2 + 1], sigmas[row // 2 + 1]
        rho = ((sigma - mid) / (sigma - following)).sqrt()
        given[row] = first if row % 2 == 0 else (second - rho * first) / (1 - rho.square()).sqrt()
    return given


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("key", RUNS)
def test_trajectories_are_the_recorded_ones(backend, key, dtype, tolerance):
    run, sigmas = RUNS[key], RECORDED[f"sigmas.{RUNS[key]['sigmas']}.n8.f64"]
    name = run["function"].removeprefix("sample_")
    plan = SOLVERS[name](SigmaProcess("x0"), sigmas, clip=None, **run["kwargs"])
    noise = {row: z.to(dtype) for row, z in noise_by_row(plan, name, sigmas, run["kwargs"]).items()}
    visited = states(plan, mixture, (RECORDED["x_init_unit"] * sigmas[0]).to(dtype), noise.get)
    asked = [row for row in range(len(plan)) if plan.call[row]]
    steps = [*asked[:: 2 if name in TWO_STAGES else 1], len(plan)]
    expected = RECORDED[f"{key}.x"]
    assert len(steps) == len(expected) == 9 and plan.start == sigmas[0]
    for row, x in zip(steps, expected, strict=True):
        assert error(visited[row], x) < tolerance


def test_all_trajectories_are_here():
    assert len(RUNS) == 56 and {run["function"] for run in RUNS.values()} == {
        f"sample_{name}" for name in ("euler", "heun", "dpm_2", "lms", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2m",
                                      "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
    }  # fmt: skip


def test_ancestral_steps_are_the_recorded_ones():
    from fastdiff.samplers.euler import ancestral

    for level, following, eta, down, up in RECORDED["ancestral_step"].tolist():
        assert ancestral(level, following, eta) == (pytest.approx(down, rel=1e-12), pytest.approx(up, rel=1e-12))


def test_churn_includes_its_ends():
    """From s_tmin <= sigma <= s_tmax."""
    plan = SOLVERS["euler"](SigmaProcess("x0"), [4.0, 3.0, 2.0, 1.0, 0.0], s_churn=0.4, s_tmin=2.0, s_tmax=3.0)
    assert plan.call == (True, False, True, False, True, True)
    assert plan.time[[1, 3]].tolist() == pytest.approx([3.3, 2.2])


def test_churn_is_bounded():
    """gamma = min(s_churn / S, sqrt(2) - 1)."""
    sigmas = RECORDED["sigmas.karras.n8.f64"]
    plan = SOLVERS["euler"](SigmaProcess("x0"), sigmas, s_churn=100.0)
    assert plan.time[0].item() == pytest.approx(math.sqrt(2) * sigmas[0].item(), rel=1e-14)
