"""Where the conventions of the peers part: each right one reproduces a recorded network, and the other does not.

The recorded networks hold to 2e-5 of a deviation (1e-6 in float64); a wrong convention moves them by more than 1e-2, a
wrong eps by more than 1e-5.
"""

import dataclasses

import pytest
import torch

from fastdiff import load_unet
from fastdiff.models.layers import sinusoidal_embedding
from fastdiff.models.norms import GroupNormSiLU

from . import recorded


def deviation(name, case="int", dtype=torch.float64, time=None, **changes):
    """Of the output of a recorded network whose config is changed, from what was recorded."""
    model = recorded.network(name)
    if changes:
        model = load_unet(model.state_dict(), "fastdiff", dataclasses.replace(model.config, **changes))
    x, t, extra = recorded.inputs(name, case, dtype)
    with torch.no_grad():
        found = model.to(dtype)(x, t if time is None else time(t), **extra)
    data, kind = recorded.fixture(name), "logits" if "classifier" in name else "output"
    return recorded.error(found, data.get(f"{case}.{kind}_f64", data[f"{case}.{kind}"]))


WRONG = {
    "time embedding: OpenAI's is [cos, sin]": ("improved_a", dict(sin_first=True)),
    "time embedding: diffusers' DDPM has [sin, cos]": ("ddpm_like", dict(sin_first=False)),
    "time embedding: lucidrains' is [sin, cos]": ("lucidrains_unet", dict(sin_first=False)),
    "time embedding: OpenAI divides by half": ("improved_a", dict(freq_shift=1)),
    "time embedding: DDPM divides by half - 1 (freq_shift 1)": ("ddpm_like", dict(freq_shift=0)),
    "time embedding: lucidrains divides by half - 1": ("lucidrains_unet", dict(freq_shift=0)),
    "time embedding: lucidrains' layers have exact GELU between": ("lucidrains_unet", dict(embedding_act="silu")),
    "downsample: diffusers' padding 0 is right and below": ("ddpm_like", dict(downsample="conv")),
    "downsample: OpenAI's padding is symmetric": ("improved_a", dict(downsample="conv_asymmetric")),
    "qkv: improved-diffusion packs heads x (q, k, v)": ("improved_a", dict(qkv_order="qkv")),
    "qkv: guided-diffusion's legacy order": ("guided_d_legacy", dict(qkv_order="qkv")),
    "qkv: guided-diffusion's new order is (q, k, v) x heads": ("guided_d_new", dict(qkv_order="heads")),
    "qkv: diffusers' q, k and v are whole matrices": ("default_class", dict(qkv_order="heads")),
    "qkv: lucidrains' is (q, k, v) x heads": ("lucidrains_unet", dict(qkv_order="heads")),
    "heads: by count": ("improved_a", dict(heads=2)),
    "heads: by channels": ("guided_d_new", dict(head_channels=32)),
    "heads: diffusers' attention_head_dim is a width": ("default_class", dict(head_channels=None, heads=1)),
}


@pytest.mark.parametrize("trap", WRONG)
def test_trap(trap):
    name, changes = WRONG[trap]
    assert deviation(name) < (1e-6 if "f64" in str(recorded.fixture(name).keys()) else 2e-5)
    assert deviation(name, **changes) > 1e-2


@pytest.mark.parametrize("name", ["improved_a", "guided_d_new", "classifier_attention"])
def test_group_norm_eps_is_1e_5_in_openais(name):
    """Seen in float64 alone; for diffusers' 1e-6 see dialects/test_diffusers.py."""
    assert deviation(name) < 1e-6
    assert deviation(name, norm_eps=1e-6) > 1e-5


@pytest.mark.parametrize("name", ["improved_a", "guided_d_new", "lucidrains_unet"])
def test_film_is_scale_first_and_shift_second(name):
    """norm(h) * (1 + scale) + shift, of the first and second half of one linear layer."""
    model = recorded.network(name).double()
    x, t, extra = recorded.inputs(name, "int", torch.float64)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".time." in key:
                parameter.copy_(parameter.roll(len(parameter) // 2, 0))
        assert recorded.error(model(x, t, **extra), recorded.fixture(name)["int.output_f64"]) > 1e-2


def test_film_has_one_plus_scale():
    """A network without the 1 has another output: its scale is what the layer gives, less 1."""
    model = recorded.network("improved_a").double()
    x, t, _ = recorded.inputs("improved_a", "int", torch.float64)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".time.bias"):
                parameter[: len(parameter) // 2] -= 1
        assert recorded.error(model(x, t), recorded.fixture("improved_a")["int.output_f64"]) > 1e-2


def test_norm_is_rms_in_lucidrains_2_and_group_before():
    """Told by the key: norm.g, or norm.weight and norm.bias; see dialects/test_lucidrains_versions.py."""
    assert recorded.network("lucidrains_unet").config.norm == "rms"
    assert "mid_block1.block1.norm.g" in recorded.fixture("lucidrains_unet")["sd"]
    model = recorded.network("lucidrains_unet").double()
    x, t, _ = recorded.inputs("lucidrains_unet", "int", torch.float64)
    for name, module in list(model.named_modules()):
        if name.endswith(("norm_1", "norm_2")):
            model.set_submodule(name, GroupNormSiLU(len(module.weight), 8, 1e-5).double())
            model.get_submodule(name).weight.data.copy_(module.weight)
    with torch.no_grad():
        assert recorded.error(model(x, t), recorded.fixture("lucidrains_unet")["int.output_f64"]) > 1e-2


def test_film_comes_from_the_checkpoint():
    """OpenAI's and lucidrains' FiLM, diffusers' default sum: told by the width of the time layer."""
    told = {name: recorded.network(name).config.scale_shift for name in recorded.NAMES}
    plain = {"improved_b", "ddpm_like", "default_class"}
    assert told == {name: name not in plain for name in recorded.NAMES}


@pytest.mark.parametrize("name", [name for name in recorded.NAMES if "classifier" not in name])
def test_fractional_timesteps_are_not_rounded(name):
    """rescale_timesteps feeds t * 1000 / T."""
    assert deviation(name, "frac", torch.float32) < 2e-5
    assert deviation(name, "frac", torch.float32, time=torch.floor) > 1e-3
    assert deviation(name, "int", torch.float32, time=lambda t: t + 1) > 1e-3


def test_frequencies_are_float32_and_the_rest_is_not():
    """As the peers have it: 1e-6 of a deviation in float64 needs both."""
    t = torch.tensor([999.0])
    exact = sinusoidal_embedding(t, 64, dtype=torch.float64)
    assert exact.dtype is torch.float64
    w = torch.exp(torch.arange(32, dtype=torch.float32) * (-torch.log(torch.tensor(1e4)).item() / 31)).double()
    assert (exact[0, :32] - torch.sin(999 * w)).abs().max() < 1e-12
    assert (sinusoidal_embedding(t, 64).double() - exact).abs().max() > 1e-8


def test_a_super_resolution_networks_image_comes_after_x():
    """Bilinear, align_corners False."""
    data, model = recorded.fixture("superres_improved"), recorded.network("superres_improved").double()
    x, t, extra = recorded.inputs("superres_improved", "int", torch.float64)
    assert model.config.in_channels == 3 and model.conv_in.in_channels == 6
    with torch.no_grad():
        swapped = model.conv_in.weight.roll(3, 1)
        assert recorded.error(model(x, t, **extra), data["int.output_f64"]) < 1e-6
        model.conv_in.weight.copy_(swapped)
        assert recorded.error(model(x, t, **extra), data["int.output_f64"]) > 1e-2


def test_a_pixel_unshuffle_is_channel_major():
    """lucidrains' 1x1 convolution of c x 2 x 2 channels, here one of 2 x 2 pixels."""
    model = recorded.network("lucidrains_unet").double()
    x, t, _ = recorded.inputs("lucidrains_unet", "int", torch.float64)
    weight = model.down[0]["downsample"].weight
    assert weight.shape == (16, 16, 2, 2)
    with torch.no_grad():
        weight.copy_(weight.transpose(2, 3).clone())  # columns before rows
        assert recorded.error(model(x, t), recorded.fixture("lucidrains_unet")["int.output_f64"]) > 1e-3


def test_the_label_is_added_to_the_time():
    name = "improved_c_class"
    x, t, extra = recorded.inputs(name, "int")
    with torch.no_grad():
        other = recorded.network(name)(x, t, (extra["y"] + 1) % 7)
    assert recorded.error(other, recorded.fixture(name)["int.output"]) > 1e-2


def test_the_stem_of_guided_diffusion_has_its_own_width():
    """int(channel_mult[0] * model_channels), half of it in the 512 x 512 network."""
    config = dataclasses.replace(recorded.network("guided_d_new").config, channels=64, channel_mult=(0.5, 1))
    assert config.widths == (32, 64)
    loaded = load_unet(recorded.fixture("guided_d_new")["sd"], config=recorded.options("guided_d_new"))
    assert loaded.config.stem == 32
