"""Our schedulers in diffusers' own pipelines, beside its own: the same generator, the same images."""

import inspect

import diffusers
import pytest
import torch

from fastdiff import Sampler
from fastdiff.integrations.diffusers import (
    FastDDIMScheduler,
    FastDDPMScheduler,
    FastDPMSolverMultistepScheduler,
    sampler,
)
from tests.processes.golden import error

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
FAST = {"DDPM": FastDDPMScheduler, "DDIM": FastDDIMScheduler, "DPMSolverMultistep": FastDPMSolverMultistepScheduler}


def pair(name, **config):
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return peer, FAST[name].from_config(peer.config)


def unet(channels=3, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def model(x, t, channels=1):
    output = 0.7 * torch.tanh(1.3 * x) + 0.2 * torch.cos(torch.as_tensor(t).float() / 90) + 0.1 * x.roll(1, -1)
    return output if channels == 1 else torch.cat([output, torch.tanh(x + 0.3)], 1)


def visited(scheduler, channels=1, transform=None, begin=0, **options):
    generator = torch.Generator().manual_seed(5)
    x, states = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3)), []
    if begin:
        scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin:]:
        output = model(scheduler.scale_model_input(x, t), t, channels)
        output = output if transform is None else transform(output)
        result = scheduler.step(output, t, x, generator=generator, **options)
        states.append((x := result.prev_sample, result.get("pred_original_sample")))
    return states, generator.get_state()


def assert_same(peer, ours, steps, **options):
    peer.set_timesteps(steps), ours.set_timesteps(steps)
    (theirs, their_state), (mine, my_state) = (visited(scheduler, **options) for scheduler in (peer, ours))
    assert torch.equal(their_state, my_state)
    for (x, x0), (expected, expected_x0) in zip(mine, theirs, strict=True):
        assert x.dtype is torch.float32 and error(x, expected) < 1e-4
        if expected_x0 is not None:
            assert error(x0, expected_x0) < 1e-4


SPACINGS = ["leading", "linspace", "trailing"]
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SDE = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"])
def test_ddpm(backend, variance, spacing):
    pair_ = pair("DDPM", variance_type=variance, timestep_spacing=spacing)
    transform = (lambda m: torch.cat([m[:, :3], m[:, 3:].abs() * 0.1 + 1e-3], 1)) if variance == "learned" else None
    assert_same(*pair_, 10, channels=1 + variance.startswith("learned"), transform=transform)


@pytest.mark.parametrize("config", [ZERO_SNR, THRESHOLD, {"prediction_type": "sample", "clip_sample_range": 0.5}])
@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_configs(backend, name, config):
    assert_same(*pair(name, **config), 10, **({"eta": 0.5} if name == "DDIM" else {}))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("options", [{}, {"eta": 0.6}, {"eta": 1.0, "use_clipped_model_output": True}])
def test_ddim_goes_a_stride_down_and_keeps_the_raw_eps(backend, options, spacing):
    assert_same(*pair("DDIM", timestep_spacing=spacing, steps_offset=int(spacing == "leading")), 10, **options)
    assert_same(*pair("DDIM", timestep_spacing=spacing, set_alpha_to_one=False), 10, **options)


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("config", [
    {}, {"solver_order": 3}, {"solver_order": 1}, {"solver_type": "heun"}, {"use_karras_sigmas": True},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {"algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, THRESHOLD, {"euler_at_final": True},
    {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {**SDE, "solver_order": 1}, SDE,
    {**SDE, "solver_type": "heun"}, {**SDE, "euler_at_final": True}, {**SDE, **THRESHOLD},
    {"solver_order": 3, "euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3, "solver_type": "heun"},
    {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    # The last level twice, of which diffusers makes NaN by order 3.
    {"use_karras_sigmas": True, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True, **SDE},
    {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 1},
])  # fmt: skip
@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_multistep(backend, steps, config, begin):
    assert_same(*pair("DPMSolverMultistep", **config), steps, begin=begin)


# ---- Pipelines ----


def images(pipeline, scheduler, **options):
    pipeline.scheduler = scheduler  # DDIMPipeline's constructor puts an original in its place
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(6)  # LDMPipeline hands no generator to its scheduler
    return torch.as_tensor(pipeline(generator=torch.Generator().manual_seed(1), output_type="np", **options).images)


@pytest.mark.parametrize("name, options", [("DDPM", {}), ("DDIM", {}), ("DDIM", {"eta": 0.7})])
def test_pixel_pipelines(name, options):
    peer, ours = pair(name)
    pipeline = getattr(diffusers, f"{name}Pipeline")(unet(), peer)
    theirs, mine = (images(pipeline, s, batch_size=2, num_inference_steps=6, **options) for s in (peer, ours))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01


def test_pipelines_that_look_at_the_signature_see_generator_and_eta():
    for fast in FAST.values():
        named = inspect.signature(fast.step).parameters
        assert "generator" in named and ("eta" in named) == (fast is FastDDIMScheduler)


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}])
def test_a_latent_pipeline(options):
    torch.manual_seed(2)
    vqvae = diffusers.VQModel(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    peer, ours = pair("DDIM", clip_sample=False)
    pipeline = diffusers.LDMPipeline(vqvae, unet(), peer)
    theirs, mine = (images(pipeline, s, num_inference_steps=6, **options) for s in (peer, ours))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)
    assert theirs.std() > 0.01


def image_to_image():
    """Stable Diffusion's, of tiny random networks, without its text encoder."""
    torch.manual_seed(4)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    network = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return diffusers.StableDiffusionImg2ImgPipeline(
        vae=vae.eval(), text_encoder=None, tokenizer=None, unet=network.eval(), safety_checker=None,
        feature_extractor=None, scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
    )  # fmt: skip


@pytest.mark.parametrize("name, config, options", [
    ("DDIM", {"clip_sample": False, "steps_offset": 1}, {}),
    ("DDIM", {"clip_sample": False, "steps_offset": 1}, {"eta": 0.6}),
    ("DPMSolverMultistep", {"steps_offset": 1}, {}),
    ("DPMSolverMultistep", {"steps_offset": 1, "algorithm_type": "sde-dpmsolver++"}, {}),
])  # fmt: skip
def test_image_to_image_starts_in_the_middle(name, config, options):
    pytest.importorskip("transformers")
    pipeline, schedulers = image_to_image(), pair(name, **config)
    given = {
        "prompt_embeds": torch.randn(1, 5, 8), "negative_prompt_embeds": torch.zeros(1, 5, 8), "strength": 0.6,
        "image": torch.rand(1, 3, 16, 16), "num_inference_steps": 10, "guidance_scale": 3.0, **options,
    }  # fmt: skip
    theirs, mine = (images(pipeline, scheduler, **given) for scheduler in schedulers)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)
    assert theirs.std() > 0.01


def test_sampler_of_a_pipeline_and_its_folder(tmp_path):
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    pipeline.save_pretrained(tmp_path)
    made, loaded = sampler(pipeline, steps=5), Sampler.from_diffusers(tmp_path, steps=5)
    assert made.solver == "ddpm" and made.clip == 1.0 and made.process.prediction == "eps"
    samples = made.sample(2, seed=3)
    assert samples.shape == (2, 3, 8, 8) and error(loaded.sample(2, seed=3), samples) < 1e-5
    assert Sampler.from_diffusers(pipeline, solver="ddim", steps=5, eta=0.3).plan["std"].max() > 0
