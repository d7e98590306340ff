"""Against the installed diffusers: networks of random weights, live."""

import json
import warnings

import pytest
import torch

import fastdiff
from fastdiff import load_unet, save_unet
from tests.models.recorded import error

diffusers = pytest.importorskip("diffusers", reason="compares with diffusers, which is not installed")

SMALL = dict(
    sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
DDPM = dict(SMALL, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, attention_head_dim=None)
CONFIGS = {
    "defaults": SMALL,
    "ddpm-cifar10's": DDPM,
    "three levels, two layers, width no power of two": dict(
        SMALL, block_out_channels=(24, 48, 48), layers_per_block=2, attention_head_dim=24,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    "attention at other levels on the way up": dict(SMALL, up_block_types=("UpBlock2D", "AttnUpBlock2D")),
    "blocks resample": dict(
        SMALL, down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet",
    ),
    "FiLM, classes, one channel": dict(
        SMALL, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8, num_class_embeds=5, in_channels=1,
        out_channels=2,
    ),
    "no attention": dict(
        SMALL, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    ),
}  # fmt: skip


def theirs(options, dtype=torch.float32):
    """A UNet2DModel of weights that all matter."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = diffusers.UNet2DModel(**options).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return model.to(dtype)


def inputs(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, model.config.in_channels, 16, 16, generator=generator).to(dtype)
    y = torch.tensor([0, 4, 2]) if model.config.num_class_embeds else None
    return x, torch.tensor([0, 17, 999]), y


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs(name, tmp_path):
    """From the folder that it writes, and from its weights with its options."""
    model = theirs(CONFIGS[name])
    model.save_pretrained(tmp_path)
    x, t, y = inputs(model)
    with torch.no_grad():
        expected = model(x, t, class_labels=y).sample
        for ours in (load_unet(tmp_path), load_unet(model.state_dict(), config=dict(model.config))):
            assert error(ours(x, t, y), expected) < 2e-5


def test_gradients(tmp_path):
    model = theirs(CONFIGS["ddpm-cifar10's"])
    model.save_pretrained(tmp_path)
    ours = load_unet(tmp_path)
    x, t, _ = inputs(model)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(a, t).sample.square().mean().backward()
    ours(b, t).square().mean().backward()
    assert error(b.grad, a.grad) < 2e-5


def test_a_size_that_is_no_square(tmp_path):
    """[height, width]: what `Sampler` draws, and what goes back into the config."""
    theirs(dict(SMALL, sample_size=[16, 32])).save_pretrained(tmp_path / "a")
    model = load_unet(tmp_path / "a")
    assert model.sample_shape == (3, 16, 32) and model.config.attention_resolutions == (8,)
    save_unet(model, tmp_path / "b", "diffusers")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["sample_size"] == [16, 32]
    assert load_unet(tmp_path / "b").config == model.config
    process = fastdiff.GaussianProcess(fastdiff.schedules.linear(1000))
    assert fastdiff.Sampler(model, process, steps=2).sample(1, seed=0).shape == (1, 3, 16, 32)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_eps_is_the_configs(eps, tmp_path):
    """At t = 0, where the embedding is exact, all is float64: the other eps is 1e4 times as far off."""
    model = theirs(dict(DDPM, norm_eps=eps), torch.float64)
    model.save_pretrained(tmp_path)
    x, t, _ = inputs(model, torch.float64)
    right, wrong = load_unet(tmp_path), load_unet(tmp_path, config=dict(norm_eps=1.1e-5 - eps))
    with torch.no_grad():
        expected = model(x, t * 0).sample
        assert error(right(x, t * 0), expected) < 1e-12 < 1e-8 < error(wrong(x, t * 0), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_is_read_by_them(name, tmp_path):
    model = theirs(CONFIGS[name])
    save_unet(load_unet(model.state_dict(), config=dict(model.config)), tmp_path, "diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    x, t, y = inputs(model)
    with torch.no_grad():
        assert torch.equal(back(x, t, class_labels=y).sample, model(x, t, class_labels=y).sample)


def test_weights_alone_ask_for_what_they_do_not_tell():
    weights = theirs(CONFIGS["defaults"]).state_dict()
    told = dict(sample_size=16, attention_head_dim=8, norm_num_groups=8, norm_eps=1e-5, freq_shift=0,
                flip_sin_to_cos=True, downsample_padding=1)  # fmt: skip
    with pytest.raises(ValueError, match=f"config must say what the weights cannot: {', '.join(told)}"):
        load_unet(weights)
    assert load_unet(weights, config=told).config == load_unet(weights, config=dict(CONFIGS["defaults"])).config


@pytest.mark.parametrize("options, message", [
    (dict(sample_size=None), "config must say what the weights cannot: sample_size"),
    (dict(act_fn="gelu"), "act_fn must be 'silu' or 'swish' for a UNet, got 'gelu'"),
    (dict(time_embedding_type="fourier"), "time_embedding_type must be 'positional' for a UNet, got 'fourier'"),
    (dict(center_input_sample=True), "center_input_sample must be False for a UNet, got True"),
    (dict(mid_block_scale_factor=1.4), "mid_block_scale_factor must be 1 for a UNet, got 1.4"),
    (dict(class_embed_type="timestep"), "class_embed_type must be None for a UNet, got 'timestep'"),
    (dict(down_block_types=["SkipDownBlock2D", "AttnDownBlock2D"]), "down_block_types must be among .*'Skip"),
    (dict(resnet_time_scale_shift="scale_shift"), "attn_norm_num_groups must be norm_num_groups for a UNet"),
    (dict(time_embedding_dim=8), "time_embedding_dim must be 64 for a UNet, got 8"),
    (dict(down_block_types=["AttnDownBlock2D"] * 2, downsample_type="fir"), "down_block_types must all resample"),
    (dict(cross_attention_dim=8), r"config must hold options of the dialect .*\), got cross_attention_dim"),
])  # fmt: skip
def test_refusals(options, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "_class_name": "UNet2DModel", **options}))
    torch.save(theirs(SMALL).state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        load_unet(tmp_path)
