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


ADAPTIVE = {run["key"]: run for run in load("dpm_solver")["runs"] if run["key"].startswith("adaptive")}


@pytest.mark.parametrize("key", ADAPTIVE)
def test_recorded_runs_of_dpm_adaptive(key):
    """One draw for each accepted step, of its ends; as many calls, accepted and rejected."""
    arrays, process, data = recorded_fast()
    config, kwargs, asked, seen = arrays["config"], ADAPTIVE[key]["kwargs"], [], []

    def noise_sampler(level, following):
        asked.append((float(level), float(following)))
        return arrays["noise"][0]

    x, info = k_diffusion.sample_dpm_adaptive(
        data.model(process), arrays["x_init_unit"] * config["sigma_max"], config["sigma_min"], config["sigma_max"],
        callback=seen.append, disable=True, noise_sampler=noise_sampler, return_info=True, **kwargs,
    )  # fmt: skip
    assert error(x, arrays[key]) < 1e-10
    assert info == ADAPTIVE[key]["info"] and len(asked) == info["n_accept"]
    assert asked[0][0] == pytest.approx(config["sigma_max"]) and asked[-1][1] == pytest.approx(config["sigma_min"])
    assert all(level == before for (level, _), (_, before) in zip(asked[1:], asked, strict=False))
    assert torch.equal(seen[-1]["x"], x) and [step["i"] for step in seen] == list(range(info["steps"]))
    assert seen[-1]["sigma"] == seen[-1]["sigma_hat"] == pytest.approx(config["sigma_min"])
    assert [step["n_reject"] for step in seen] == sorted(step["n_reject"] for step in seen)
    assert (seen[0]["error"] < 1.2) == (seen[0]["n_accept"] == 1) and seen[0]["h"] > 0
    first = data.model(process)(arrays["x_init_unit"] * config["sigma_max"], torch.full((3,), config["sigma_max"]))
    assert error(seen[0]["denoised"], first) < 1e-6


def test_dpm_adaptive_returns_x_alone_and_draws_from_torchs_generator():
    def sample(**options):
        torch.manual_seed(3)
        x = k_diffusion.sample_dpm_adaptive(mixture, RECORDED["x_init_unit"] * 10.0, 0.1, 10.0, disable=True, **options)
        return x, torch.get_rng_state()

    (plain, after), (noisy, _) = sample(), sample(eta=1.0)
    assert isinstance(plain, torch.Tensor) and not torch.equal(plain, noisy)
    torch.manual_seed(3)
    assert not torch.equal(torch.get_rng_state(), after)  # noise is drawn without eta too, as there
    with pytest.raises(ValueError, match=r"sigma_min and sigma_max must be above 0, got 0 and 10\.0"):
        k_diffusion.sample_dpm_adaptive(mixture, plain, 0, 10.0)
    with pytest.raises(ValueError, match="order must be 2 or 3, got 4"):
        k_diffusion.sample_dpm_adaptive(mixture, plain, 0.1, 10.0, order=4)


SIGNATURES = {
    "euler": "s_churn=0.0 s_tmin=0.0 s_tmax=inf s_noise=1.0", "heun": "s_churn=0.0 s_tmin=0.0 s_tmax=inf s_noise=1.0",
    "dpm_2": "s_churn=0.0 s_tmin=0.0 s_tmax=inf s_noise=1.0",
    "euler_ancestral": "eta=1.0 s_noise=1.0 noise_sampler=None",
    "dpm_2_ancestral": "eta=1.0 s_noise=1.0 noise_sampler=None",
    "dpmpp_2s_ancestral": "eta=1.0 s_noise=1.0 noise_sampler=None", "lms": "order=4", "dpmpp_2m": "",
    "dpmpp_sde": "eta=1.0 s_noise=1.0 noise_sampler=None r=0.5",
    "dpmpp_2m_sde": "eta=1.0 s_noise=1.0 noise_sampler=None solver_type=midpoint",
    "dpmpp_3m_sde": "eta=1.0 s_noise=1.0 noise_sampler=None",
    "dpm_fast": "eta=0.0 s_noise=1.0 noise_sampler=None",
    "dpm_adaptive": "order=3 rtol=0.05 atol=0.0078 h_init=0.05 pcoeff=0.0 icoeff=1.0 dcoeff=0.0 accept_safety=0.81"
    " eta=0.0 s_noise=1.0 noise_sampler=None return_info=False",
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_k_diffusion(name):
    """All of its sample_* functions, by their names, order and defaults."""
    places = {"dpm_fast": "sigma_min sigma_max n", "dpm_adaptive": "sigma_min sigma_max"}.get(name, "sigmas")
    expected = f"model x {places} extra_args=None callback=None disable=None {SIGNATURES[name]}".split()
    parameters = inspect.signature(getattr(k_diffusion, f"sample_{name}")).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert found == expected
    assert {n for n in k_diffusion.__all__ if n.startswith("sample_")} == {f"sample_{n}" for n in SIGNATURES}


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


def test_a_denoiser_of_a_network_whose_output_lies_in_an_object():
    process = GaussianProcess(schedules.linear(1000))
    x, sigma = torch.ones(1, 1, 2, 2), torch.tensor([3.0])
    found = k_diffusion.Denoiser(lambda x, t: {"sample": 0.1 * x}, process)(x, sigma)
    assert torch.equal(found, k_diffusion.Denoiser(lambda x, t: 0.1 * x, process)(x, sigma))
