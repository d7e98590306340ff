"""k-diffusion's recorded runs, through its own signatures; its wrappers, and back."""

import inspect

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.integrations import k_diffusion
from fastdiff.processes import SigmaProcess
from tests.processes.golden import error, load
from tests.samplers.test_dpm_fast import recorded as recorded_fast
from tests.samplers.test_k_diffusion import RECORDED, RUNS, mixture

WRAPPERS = load("kdiffusion_wrappers")


def recorded_run(key, monkeypatch, dtype=torch.float64):
    """(states at each call of the callback and the last, the noise that was asked for)."""
    run, sigmas = RUNS[key], RECORDED[f"sigmas.{RUNS[key]['sigmas']}.n8.f64"].to(dtype)
    remaining, asked, kwargs, visited = iter(RECORDED["noise"].to(dtype)), [], dict(run["kwargs"]), []
    monkeypatch.setattr(torch, "randn_like", lambda x: asked.append(None) or next(remaining))
    sample = getattr(k_diffusion, run["function"])
    if "noise_sampler" in inspect.signature(sample).parameters:
        kwargs["noise_sampler"] = lambda a, b: asked.append((float(a), float(b))) or next(remaining)
    x = sample(mixture, (RECORDED["x_init_unit"] * sigmas[0]).to(dtype), sigmas, disable=True,
               callback=lambda info: visited.append(info), **kwargs)  # fmt: skip
    return [info["x"] for info in visited] + [x], asked, visited


@pytest.mark.parametrize("key", RUNS)
def test_recorded_runs(backend, key, monkeypatch):
    sigmas = RECORDED[f"sigmas.{RUNS[key]['sigmas']}.n8.f64"]
    visited, asked, infos = recorded_run(key, monkeypatch)
    assert len(visited) == len(RECORDED[f"{key}.x"])
    for x, expected in zip(visited, RECORDED[f"{key}.x"], strict=True):
        assert error(x, expected) < 1e-10
    assert len(asked) == RUNS[key]["noises_used"]
    if asked and asked[0] is not None:
        ends = {pair for pair in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False) if pair[1] > 0}
        middles = {(high, (high * low) ** 0.5) for high, low in ends} if "dpmpp_sde" in key else set()
        torch.testing.assert_close(torch.tensor(asked).double(), torch.tensor(sorted(ends | middles)[::-1]).double())
    assert [info["i"] for info in infos] == list(range(8))
    for info in infos:
        assert torch.equal(info["denoised"], mixture(info["x"], info["sigma_hat"].expand(len(info["x"]))))


FAST = {run["key"]: run["kwargs"] for run in load("dpm_solver")["runs"] if run["key"].startswith("fast")}


@pytest.mark.parametrize("key", FAST)
def test_recorded_runs_of_dpm_fast(backend, key):
    """One draw a step whatever eta; its levels are the ends of the steps."""
    arrays, process, data = recorded_fast()
    config, kwargs, asked = arrays["config"], FAST[key], []

    def noise_sampler(level, following):
        asked.append((float(level), float(following)))
        return arrays["noise"][len(asked) - 1]

    x = k_diffusion.sample_dpm_fast(
        data.model(process), (arrays["x_init_unit"] * config["sigma_max"]).double(), config["sigma_min"],
        config["sigma_max"], kwargs["n"], eta=kwargs["eta"], s_noise=kwargs["s_noise"], noise_sampler=noise_sampler,
        disable=True,
    )  # fmt: skip
    assert error(x, arrays[key]) < 1e-10
    assert len(asked) == kwargs["n"] // 3 + 1 and asked[-1][1] == pytest.approx(config["sigma_min"])


def test_float32_and_extra_args(backend):
    sigmas = RECORDED["sigmas.karras.n8.f64"]

    def model(x, sigma, shift):
        assert sigma.shape == x.shape[:1] and sigma.dtype is x.dtype
        return mixture(x, sigma) + shift

    x = RECORDED["x_init_unit"] * sigmas[0]
    wide, narrow = (
        k_diffusion.sample_heun(model, x.to(dtype), sigmas.to(dtype), {"shift": 0.1}, disable=True)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.dtype is torch.float32 and error(narrow, wide) < 1e-5
    assert error(k_diffusion.sample_heun(model, x, sigmas, {"shift": 0.0}, disable=True), wide) > 1e-3


def network(x, t):
    a, b = (WRAPPERS[f"model.{name}"].to(x.dtype).view(1, -1, 1, 1) for name in "ab")
    return a * x + b * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1) + 0.1 * torch.tanh(x.roll(-1, 1))


NOISED = WRAPPERS["x0"] + WRAPPERS["sigma"].view(-1, 1, 1, 1) * WRAPPERS["noise"]


@pytest.mark.parametrize("quantize", [0, 1])
@pytest.mark.parametrize("prediction, name", [("eps", "openai"), ("v", "discrete_v")])
def test_discrete_wrappers(prediction, name, quantize):
    denoiser = k_diffusion.Denoiser(network, GaussianProcess(schedules.linear(1000), prediction), bool(quantize))
    expected = WRAPPERS[f"{name}.quantize{quantize}.denoised"]
    assert error(denoiser(NOISED, WRAPPERS["sigma"]), expected) < 2e-5
    if prediction == "eps":
        times = denoiser.sigma_to_t(WRAPPERS["sigma"])
        torch.testing.assert_close(times.double(), WRAPPERS[f"openai.quantize{quantize}.sigma_to_t"].double(),
                                   rtol=1e-4, atol=1e-3)  # fmt: skip
        for n in (None, 10, 7):
            torch.testing.assert_close(denoiser.get_sigmas(n), WRAPPERS[f"openai.get_sigmas.n{n}"], rtol=2e-4, atol=0)


def test_learned_variance_channels_are_dropped():
    process = GaussianProcess(schedules.linear(1000))
    denoiser = k_diffusion.Denoiser(lambda x, t: torch.cat([network(x, t), x], 1), process)
    assert error(denoiser(NOISED, WRAPPERS["sigma"]), WRAPPERS["openai.quantize0.denoised"]) < 2e-5


def test_v_wrapper():
    denoiser = k_diffusion.Denoiser(network, SigmaProcess("v", sigma_data=1.0))
    assert error(denoiser(NOISED, WRAPPERS["sigma"]), WRAPPERS["v.denoised"]) < 2e-5
    torch.testing.assert_close(denoiser.sigma_to_t(WRAPPERS["sigma"]), WRAPPERS["v.sigma_to_t"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_karras_preconditioning_feeds_sigma(sigma_data):
    denoiser = k_diffusion.Denoiser(network, SigmaProcess("edm", time="sigma", sigma_data=sigma_data))
    expected = WRAPPERS[f"karras_precond.sigma_data{sigma_data}.karras.denoised"]
    assert error(denoiser(NOISED, WRAPPERS["sigma"]), expected) < 2e-5


def test_a_denoiser_as_our_model_and_back():
    """Sampler's Heun of the wrapped network is k-diffusion's."""
    denoiser = k_diffusion.Denoiser(network, GaussianProcess(schedules.linear(1000)))
    model, process = k_diffusion.as_model(denoiser)
    sampler, x = Sampler(model, process, "heun", steps=6, clip=None), torch.randn(2, 2, 4, 4)
    sigmas = process.nodes(6).noise_level.float()
    assert sigmas[0].item() == pytest.approx(denoiser.sigma_max, rel=1e-6) and len(sigmas) == 7
    ours = sampler.sample((2, 2, 4, 4), x=x * sigmas[0])
    assert error(ours, k_diffusion.sample_heun(denoiser, x * sigmas[0], sigmas, disable=True)) < 1e-5
