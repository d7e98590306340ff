"""improved_diffusion's and guided_diffusion's recorded results, through their methods."""

import itertools

import numpy as np
import pytest
import torch

from fastdiff.integrations.openai import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    SpacedDiffusion,
    betas_for_alpha_bar,
    create_gaussian_diffusion,
    get_named_beta_schedule,
    space_timesteps,
)
from tests.processes.golden import error, load, network

RECORDED, STEPS, LOSSES = load("openai_guidance_and_bound"), load("gaussian_steps"), load("losses")
LOOPS, SPACED = load("spaced_runs"), load("spaced")
MEANS = {"eps": ModelMeanType.EPSILON, "x0": ModelMeanType.START_X, "xprev": ModelMeanType.PREVIOUS_X}
TRAJECTORIES = {run["key"]: run for run in LOOPS["trajectories"]}
pytestmark = pytest.mark.usefixtures("backend")


def diffusion(betas, mean, variance, *, loss=LossType.MSE, respacing=None, rescale=False):
    kind = {"model_mean_type": MEANS[mean], "model_var_type": ModelVarType[variance.upper()], "loss_type": loss}
    made = {"betas": betas, "rescale_timesteps": rescale, **kind}
    if respacing is None:
        return GaussianDiffusion(**made)
    return SpacedDiffusion(space_timesteps(len(betas), respacing), **made)


def constants(arrays, prefix):
    return {name: arrays[f"{prefix}model.{name}"] for name in ["a", "a2", "b", "p", "q"]}


@pytest.fixture
def draws(monkeypatch):
    """Makes torch.randn_like return these tensors, in this order."""

    def give(*tensors):
        remaining = iter(tensors)
        monkeypatch.setattr(torch, "randn_like", lambda x: next(remaining).to(x.dtype))

    return give


def test_forward_process():
    made, prefix = diffusion(get_named_beta_schedule("cosine", 100), "eps", "fixed_small"), "gd."
    t, noise = RECORDED["gd.t"], RECORDED["gd.noise"].double()
    x_start, x_t = RECORDED["gd.x_start"].double(), RECORDED["gd.q_sample"]
    assert error(made.q_sample(x_start, t, noise), x_t) < 1e-10
    names = ("mean", "variance", "log_variance")
    for name, value in zip(names, made.q_mean_variance(x_start, t), strict=True):
        # The peer's log(1 - alphas_cumprod) is of a number rounded near 1.
        torch.testing.assert_close(value, RECORDED[f"{prefix}q_mean_variance.{name}"], rtol=1e-10, atol=1e-15)
    posterior = dict(zip(names, made.q_posterior_mean_variance(x_start, x_t, t), strict=True))
    assert error(posterior["mean"], RECORDED["gd.q_posterior.mean"]) < 1e-10
    torch.testing.assert_close(posterior["variance"], RECORDED["gd.q_posterior.variance"], rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior["log_variance"], RECORDED["gd.q_posterior.log_variance"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("kind", ["eps.learned_range", "eps.fixed_small", "x0.fixed_large", "xprev.learned"])
def test_p_mean_variance(kind, clip):
    mean, variance = kind.split(".")
    made = diffusion(get_named_beta_schedule("cosine", 100), mean, variance, rescale=True)
    model = network(constants(RECORDED, "gd."), mean, variance)
    result = made.p_mean_variance(model, RECORDED["gd.q_sample"], RECORDED["gd.t"], clip_denoised=bool(clip))
    for name, value in result.items():
        if clip or name in ("mean", "pred_xstart"):
            expected = RECORDED[f"gd.{kind}.rescale1.p_mean_variance.clip{clip}.{name}"]
            assert value.shape == expected.shape
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", ["p_sample.clip1", "ddim_sample.eta0.5.clip1", "ddim_sample.eta0.5.clip0",
                                     "ddim_reverse_sample.clip1"])  # fmt: skip
@pytest.mark.parametrize("kind", ["eps.learned_range", "x0.fixed_large", "xprev.learned"])
@pytest.mark.parametrize("name", ["linear1000", "cosine100"])
def test_single_steps(draws, name, kind, sampler):
    mean, variance = kind.split(".")
    T, rescale = int(name.lstrip("linearcos")), name == "cosine100"
    made = diffusion(get_named_beta_schedule(name.rstrip("01"), T), mean, variance, rescale=rescale)
    model, draw = network(constants(STEPS, f"{name}."), mean, variance), STEPS[f"{name}.step_noise"]
    draws(draw)
    method, *options = sampler.rsplit(".clip", 1)[0].split(".eta")
    options = {"eta": float(options[0])} if options else {}
    x, t = STEPS[f"{name}.q_sample"], STEPS[f"{name}.t"]
    result = getattr(made, method)(model, x, t, clip_denoised=sampler.endswith("1"), **options)
    assert error(result["sample"], STEPS[f"{name}.{kind}.rescale{int(rescale)}.{sampler}"]) < 1e-9


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop.eta0.0", "ddim_sample_loop.eta0.5",
                                  "ddim_sample_loop.eta0.0.clip0"])  # fmt: skip
@pytest.mark.parametrize("key", TRAJECTORIES)
def test_spaced_loops_feed_original_timesteps_scaled_once(draws, key, loop):
    run, method = TRAJECTORIES[key], loop.split(".")[0]
    made = diffusion(get_named_beta_schedule(run["schedule"], run["T"]), run["mean_type"], run["var_type"],
                     respacing=run["respacing"], rescale=run["rescale_timesteps"])  # fmt: skip
    model = network(constants(LOOPS, ""), run["mean_type"], run["var_type"])
    noise = LOOPS[f"{key}.step_noise"]
    draws(*noise)
    options = {"noise": LOOPS[f"{key}.x_T"], "device": "cpu", "clip_denoised": not loop.endswith("clip0")}
    if ".eta" in loop:
        options["eta"] = float(loop.split("eta")[1][:3])
    visited = list(getattr(made, f"{method}_progressive")(model, (2, 3, 4, 4), **options))
    for name in ("sample", "pred_xstart") if loop == "p_sample_loop" else ("sample",):
        for result, expected in zip(visited, LOOPS[f"{key}.{loop}.{name}"], strict=True):
            assert error(result[name], expected) < 1e-4
    draws(*noise)
    assert torch.equal(getattr(made, method)(model, (2, 3, 4, 4), **options), visited[-1]["sample"])


def test_noise_is_that_of_the_default_generator_in_the_originals_order():
    """One draw for x_T, one a step even where none is added, after the network's call, which may draw its own."""
    made = diffusion(get_named_beta_schedule("linear", 100), "eps", "fixed_large", respacing="3")

    def model(x, t):
        return x * 0.1 + torch.rand(1)

    shape, outputs = (2, 3, 4, 4), []
    torch.manual_seed(3)
    x = torch.randn(*shape)
    for t in (2, 1, 0):
        ts = torch.full((2,), t)
        output = model(x, None)
        noise = torch.randn_like(x)
        out = made.p_mean_variance(lambda *_, output=output: output, x, ts)
        x = out["mean"] + (t > 0) * (0.5 * out["log_variance"]).exp() * noise
        outputs.append(x)
    torch.manual_seed(3)
    visited = [step["sample"] for step in made.p_sample_loop_progressive(model, shape, device="cpu")]
    assert len(visited) == 3
    for mine, expected in zip(visited, outputs, strict=True):
        assert error(mine, expected) < 1e-5
    state = torch.get_rng_state()
    made.ddim_sample(model, x, torch.tensor([0, 2]), eta=0.0)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.rand(1), torch.randn_like(x)
    assert torch.equal(torch.get_rng_state(), after)


# ---- Guidance ----

CASES = [(tag, case) for tag in ("g", "gr") for case in RECORDED[f"{tag}.config"]["cases"]]


@pytest.mark.parametrize("tag, case", CASES, ids=[f"{tag}.{case['key']}" for tag, case in CASES])
def test_guidance(draws, tag, case):
    config, prefix = RECORDED[f"{tag}.config"], f"{tag}.{case['key']}"
    made = diffusion(get_named_beta_schedule(config["schedule"], config["T"]), case["mean"], case["var"],
                     respacing=config["respacing"] if case["spaced"] else None,
                     rescale=config["rescale_timesteps"])  # fmt: skip
    network_ = network(constants(RECORDED, f"{tag}."), case["mean"], case["var"])
    x, t, y = RECORDED[f"{tag}.x"], RECORDED[f"{prefix}.t"], RECORDED[f"{tag}.y"]

    def model(x, t, y):
        return network_(x, t)

    def cond_fn(x, t, y):
        scale = RECORDED[f"{tag}.cond.scale"].item() * (1 + torch.cos(t.float() / 50)) / 2
        return scale.view(-1, 1, 1, 1) * (RECORDED[f"{tag}.cond.mu"][y][:, :, None, None] - x)

    options = {"model_kwargs": {"y": y}}
    out = made.p_mean_variance(model, x, t, **options)
    for name in ("mean", "log_variance", "pred_xstart"):
        assert error(out[name], RECORDED[f"{prefix}.p_mean_variance.{name}"]) < 2e-5
    assert error(made.condition_mean(cond_fn, out, x, t, **options), RECORDED[f"{prefix}.condition_mean"]) < 2e-5
    scored = made.condition_score(cond_fn, out, x, t, **options)
    for name in ("mean", "pred_xstart"):
        assert error(scored[name], RECORDED[f"{prefix}.condition_score.{name}"]) < 2e-5
    for name, arguments in (("p_sample", {}), ("ddim_sample", {"eta": 0.0}), ("ddim_sample", {"eta": 0.7})):
        draws(RECORDED[f"{tag}.step_noise"])
        stepped = getattr(made, name)(model, x, t, cond_fn=cond_fn, **options, **arguments)
        key = f"{prefix}.{name}.eta{arguments['eta']}.sample" if arguments else f"{prefix}.{name}.sample"
        # At t = 1 the peer's float32 sqrt(1 - alphas_cumprod) of DDIM is off by 4e-5 to 8e-5; ours by 1e-7.
        rounded = (t == 1) & (name == "ddim_sample")
        assert error(stepped["sample"][~rounded], RECORDED[key][~rounded]) < 2e-5
        assert error(stepped["sample"], RECORDED[key]) < 1e-4
        expected = scored if arguments else out
        assert error(stepped["pred_xstart"], expected["pred_xstart"]) < 2e-5


@pytest.mark.parametrize("mean, variance", [("eps", "learned_range"), ("x0", "fixed_large"), ("xprev", "learned")])
def test_denoised_fn_changes_x0_before_the_clip(draws, mean, variance):
    made = diffusion(get_named_beta_schedule("linear", 100), mean, variance)
    model = network(constants(STEPS, "cosine100."), mean, variance)
    x, t, noise = torch.randn(3, 3, 4, 4), torch.tensor([0, 50, 70]), torch.randn(3, 3, 4, 4)
    options = {"denoised_fn": lambda x0: 0.5 * x0 + 0.3}
    out = made.p_mean_variance(model, x, t, **options)
    plain = made.p_mean_variance(model, x, t, clip_denoised=False)["pred_xstart"]
    assert torch.equal(out["pred_xstart"], (0.5 * plain + 0.3).clamp(-1, 1))
    draws(noise, noise)
    stepped = made.p_sample(model, x, t, **options)
    nonzero = (t > 0).view(-1, 1, 1, 1)
    assert error(stepped["sample"], out["mean"] + nonzero * (0.5 * out["log_variance"]).exp() * noise) < 1e-5
    assert error(stepped["pred_xstart"], out["pred_xstart"]) < 1e-5
    assert error(made.ddim_sample(model, x, t, **options)["pred_xstart"], out["pred_xstart"]) < 1e-5


# ---- Losses and the bound ----


@pytest.mark.parametrize("loss", ["rescaled_mse", "rescaled_kl"])
@pytest.mark.parametrize("kind", ["eps.learned_range", "eps.fixed_small", "x0.fixed_large", "xprev.learned"])
@pytest.mark.parametrize("wide", [True, False])
def test_training_losses(kind, loss, wide):
    name, mean, variance = "cosine100", *kind.split(".")
    prefix = f"{name}.{'f64' if wide else 'f32'}.{kind}.rescale{int(wide)}.training_losses.{loss}."
    made = diffusion(get_named_beta_schedule("cosine", 100), mean, variance, loss=LossType[loss.upper()], rescale=wide)
    model = network(constants(LOSSES, f"{name}."), mean, variance)
    x_start, noise = (LOSSES[f"{name}.{key}"].to(torch.float64 if wide else torch.float32)
                      for key in ("x_start", "noise"))  # fmt: skip
    terms = made.training_losses(model, x_start, LOSSES[f"{name}.t"], noise=noise)
    recorded = {key.removeprefix(prefix) for key in LOSSES if key.startswith(prefix)}
    assert set(terms) == recorded
    for key, value in terms.items():
        torch.testing.assert_close(value, LOSSES[prefix + key], rtol=1e-9 if wide else 4e-4, atol=1e-9)


@pytest.mark.parametrize("T", [100, 4000])
def test_mse_and_kl_are_not_rescaled(T):
    betas, t = get_named_beta_schedule("cosine", T), torch.tensor([1, 5, 50])
    model = network(constants(STEPS, "cosine100."), "eps", "learned_range")
    x_start, noise = torch.rand(3, 3, 4, 4).double() - 0.5, torch.randn(3, 3, 4, 4).double()
    terms = {
        loss.name: diffusion(betas, "eps", "learned_range", loss=loss).training_losses(model, x_start, t, noise=noise)
        for loss in LossType
    }
    torch.testing.assert_close(terms["RESCALED_MSE"]["vb"], terms["MSE"]["vb"] * (T / 1000))
    torch.testing.assert_close(terms["RESCALED_KL"]["loss"], terms["KL"]["loss"] * T)
    torch.testing.assert_close(terms["KL"]["loss"], terms["MSE"]["vb"])  # the two differ in their gradients


def test_training_losses_carry_gradients_and_vb_reaches_the_variance_alone():
    made = diffusion(get_named_beta_schedule("linear", 100), "eps", "learned_range", loss=LossType.RESCALED_MSE)
    module = torch.nn.Conv2d(3, 6, 1)
    terms = made.training_losses(lambda x, t: module(x), torch.rand(4, 3, 4, 4), torch.tensor([0, 10, 50, 99]))
    gradients = {}
    for key in ("mse", "vb"):
        (gradients[key],) = torch.autograd.grad(terms[key].sum(), module.weight, retain_graph=True)
        assert gradients[key].isfinite().all()
    assert gradients["vb"][:3].abs().max() == 0 and gradients["vb"][3:].abs().min() > 0
    assert gradients["mse"][3:].abs().max() == 0 and gradients["mse"][:3].abs().min() > 0
    assert made.p_mean_variance(lambda x, t: module(x), torch.rand(1, 3, 4, 4), torch.tensor([5]))["mean"].requires_grad


BOUNDS = ["eps.learned_range.rescale0.clip1", "eps.fixed_large.rescale1.clip0", "x0.fixed_large.rescale0.clip1",
          "xprev.learned.rescale0.clip1", "eps.fixed_small.rescale0.clip1"]  # fmt: skip


@pytest.mark.parametrize("key, wide", list(itertools.product(BOUNDS, [True, False])))
def test_calc_bpd_loop(draws, key, wide):
    mean, variance, rescale, clip = key.split(".")
    made = diffusion(RECORDED["bpd.betas"], mean, variance, rescale=rescale == "rescale1")
    model = network(constants(RECORDED, "bpd."), mean, variance)
    draws(*RECORDED["bpd.noise"])
    x_start = RECORDED["bpd.x_start"].to(torch.float64 if wide else torch.float32)
    result = made.calc_bpd_loop(model, x_start, clip_denoised=clip == "clip1")
    assert set(result) == {"total_bpd", "prior_bpd", "vb", "xstart_mse", "mse"}
    for name, value in result.items():
        expected = RECORDED[f"bpd.{key}.{'f64' if wide else 'f32'}.{name}"]
        assert value.shape == expected.shape
        if name == "prior_bpd" and not wide:  # 2e-6, the rest of numbers near 1 that cancel
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)
        else:
            assert error(value[:, None], expected[:, None]) < (1e-9 if wide else 4e-4)


# ---- What scripts are made of ----


def test_space_timesteps():
    for case in SPACED["space_timesteps"]:
        if case["timesteps"] is None:
            with pytest.raises(ValueError):
                space_timesteps(case["num_timesteps"], case["section_counts"])
        else:
            assert space_timesteps(case["num_timesteps"], case["section_counts"]) == set(case["timesteps"])


def test_arrays_of_a_spaced_diffusion():
    made = create_gaussian_diffusion(timestep_respacing="25", learn_sigma=True)
    for name in ("betas", "alphas_cumprod", "posterior_log_variance_clipped"):
        expected = SPACED[f"spaced.linear_1000.25.{name}"]
        np.testing.assert_allclose(getattr(made, name), expected, rtol=1e-10)
    assert made.timestep_map == SPACED["spaced.linear_1000.25.timestep_map"].tolist()
    assert (made.num_timesteps, made.original_num_steps, len(made.use_timesteps)) == (25, 1000, 25)


@pytest.mark.parametrize("flags, mean, variance, loss", [
    ({}, "EPSILON", "FIXED_LARGE", "MSE"),
    ({"sigma_small": True, "predict_xstart": True}, "START_X", "FIXED_SMALL", "MSE"),
    ({"learn_sigma": True, "rescale_learned_sigmas": True}, "EPSILON", "LEARNED_RANGE", "RESCALED_MSE"),
    ({"use_kl": True}, "EPSILON", "FIXED_LARGE", "RESCALED_KL"),
])  # fmt: skip
def test_flags(flags, mean, variance, loss):
    made = create_gaussian_diffusion(steps=100, **flags)
    assert (made.model_mean_type.name, made.model_var_type.name, made.loss_type.name) == (mean, variance, loss)
    assert made.num_timesteps == 100 and made.loss_type.is_vb() == ("kl" in loss.lower())


def test_schedules_by_name():
    bar = betas_for_alpha_bar(100, lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2)
    np.testing.assert_allclose(bar, get_named_beta_schedule("cosine", 100), rtol=1e-12)
    with pytest.raises(NotImplementedError, match="schedule_name must be 'linear' or 'cosine', got 'square'"):
        get_named_beta_schedule("square", 100)
    with pytest.raises(AssertionError, match=r"eta must be 0, for the path back is deterministic, got 0.5"):
        create_gaussian_diffusion().ddim_reverse_sample(None, torch.zeros(1, 3, 2, 2), torch.tensor([1]), eta=0.5)
