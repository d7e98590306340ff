"""Weights out as they came in, bit for bit; and networks of ours out, and back with all their options told anew."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff import UNet, UNetConfig, load_unet, save_unet
from tests.models import recorded


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", recorded.NAMES)
def test_in_and_out_is_bitwise_the_same(name, tmp_path):
    """In half precision, as they are stored."""
    dialect = recorded.DIALECTS[name]
    weights = {key: value.half() for key, value in recorded.fixture(name)["sd"].items()}
    model = load_unet(weights, config=recorded.options(name))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    if dialect == "diffusers":
        save_unet(model, tmp_path / "folder", dialect)
        assert same(load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors"), weights)
    else:
        save_unet(model, tmp_path / "m.pt", dialect)
        assert same(torch.load(tmp_path / "m.pt", weights_only=True), weights)
        save_unet(model, tmp_path / "m.safetensors", dialect)
        assert same(load_file(tmp_path / "m.safetensors"), weights)
        assert load_unet(tmp_path / "m.safetensors").config == model.config  # which stands in the file


SMALL = dict(image_size=16, channels=32, channel_mult=(1, 2), num_res_blocks=1, groups=32, attention_resolutions=(8,))
OPENAI = dict(SMALL, norm_eps=1e-5, sin_first=False, freq_shift=0, qkv_order="heads", heads=2, stem_channels=32)
DDPM = dict(SMALL, downsample="conv_asymmetric")
LUCIDRAINS = dict(
    SMALL, num_res_blocks=2, norm="rms", norm_first=False, embedding_act="gelu", downsample="unshuffle",
    widen="resample", attention_norm="rms", qkv_bias=False, stem_kernel=7, out_kernel=1, scale_shift=True, heads=(4, 4),
    head_channels=(32, 32), memory=4, linear_attention_resolutions=(16,), stem_channels=32, norm_eps=1e-5, groups=8,
)  # fmt: skip
BEFORE_1_8 = dict(
    norm="group", memory=0, heads=4, head_channels=32, attention_resolutions=(), linear_attention_resolutions=(16, 8)
)
LEVELS = dict(channel_mult=(1, 1, 2), attention_resolutions=(16, 4))

# The config, the options that its dialect has to be told, and the dialect.
NETWORKS = {
    "openai": (OPENAI, dict(num_heads=2), "openai"),
    "openai, three levels alike, two blocks": (OPENAI | LEVELS | dict(num_res_blocks=2), dict(num_heads=2), "openai"),
    "openai, one level": (
        OPENAI | dict(channel_mult=(1,), attention_resolutions=()), dict(num_heads=2), "openai",
    ),
    "openai, heads of the way up": (OPENAI | dict(heads_up=4), dict(num_heads=2, num_heads_upsample=4), "openai"),
    "openai, learned variance": (OPENAI | dict(out_channels=6), dict(num_heads=2), "openai"),
    "openai, grey with low_res": (
        OPENAI | dict(in_channels=1, low_res=True, out_channels=2), dict(num_heads=2, low_res=True), "openai",
    ),
    "openai, two channels in and out": (OPENAI | dict(in_channels=2), dict(num_heads=2, low_res=False), "openai"),
    "guided, pooling": (
        OPENAI | LEVELS | dict(downsample="pool", upsample="nearest"),
        dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, blocks resample, new order": (
        OPENAI | LEVELS | dict(downsample="block", upsample="block", qkv_order="qkv", heads=None, head_channels=16),
        dict(num_head_channels=16, use_new_attention_order=True), "guided",
    ),
    "guided, a narrower first level": (
        OPENAI | dict(channels=64, channel_mult=(0.5, 1), scale_shift=True),
        dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, classifier": (
        OPENAI | dict(pool="adaptive", out_channels=10), dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, classifier by attention, blocks": (
        OPENAI | LEVELS | dict(pool="attention", out_channels=10, heads=None, head_channels=16, downsample="block",
                               upsample="block"),
        dict(num_head_channels=16, use_new_attention_order=False), "guided",
    ),
    "guided, classifier by means": (
        OPENAI | LEVELS | dict(pool="spatial", out_channels=10, downsample="block", upsample="block"),
        dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, classifier by means, two blocks": (
        OPENAI | LEVELS | dict(pool="spatial", out_channels=10, downsample="block", upsample="block", num_res_blocks=2),
        dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, classifier, where widths tell": (
        OPENAI | dict(pool="adaptive", out_channels=10, downsample="block", upsample="block", num_res_blocks=2,
                      attention_resolutions=()),
        dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "guided, classifier of one kind of block": (
        OPENAI | dict(pool="adaptive", out_channels=10, downsample="block", upsample="block", channel_mult=(1, 1),
                      attention_resolutions=()),
        dict(num_heads=2, use_new_attention_order=False, num_res_blocks=1), "guided",  # or of three, at one resolution
    ),
    "guided, classifier by normed means": (
        OPENAI | dict(pool="spatial_v2", out_channels=10), dict(num_heads=2, use_new_attention_order=False), "guided",
    ),
    "ddpm": (DDPM, {}, "ddpm"),
    "ddpm, two blocks": (DDPM | LEVELS | dict(num_res_blocks=2), {}, "ddpm"),
    "ddpm without convolutions between": (DDPM | dict(downsample="pool", upsample="nearest"), {}, "ddpm"),
    "lucidrains": (LUCIDRAINS, {}, "lucidrains"),
    "lucidrains 1.9": (LUCIDRAINS | dict(norm="group"), {}, "lucidrains"),
    "lucidrains 1.8": (LUCIDRAINS | dict(norm="group", memory=0), dict(attn_heads=4), "lucidrains"),
    "lucidrains 1.7": (LUCIDRAINS | BEFORE_1_8, dict(version="1.7.7"), "lucidrains"),
    "lucidrains 0.28": (
        LUCIDRAINS | BEFORE_1_8 | dict(attention_norm="layer", standardized=True, linear_mean=True, fourier_features=8,
                                       downsample="conv_4x4", self_condition=True), dict(version="0.28"), "lucidrains",
    ),
    "lucidrains, all linear but one, other heads": (
        LUCIDRAINS | dict(heads=(2, 3), head_channels=(8, 16), memory=2, attention_resolutions=(16,),
                          linear_attention_resolutions=(8,)), {}, "lucidrains",
    ),
    "lucidrains, Fourier features, self-conditioned": (
        LUCIDRAINS | dict(fourier_features=16, self_condition=True), {}, "lucidrains",
    ),
}  # fmt: skip


def drawn(config):
    """A network of no zeros."""
    torch.manual_seed(0)
    model = UNet(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_out_and_in_again(name, tmp_path):
    config, told, dialect = NETWORKS[name]
    model = drawn(UNetConfig(**config))
    save_unet(model, tmp_path / "m.pt", dialect)
    loaded = load_unet(tmp_path / "m.pt", dialect, dict(image_size=16, **told))
    assert loaded.config == model.config
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    # The pooling ones have no name of guided-diffusion's alone, nor have classifiers a name of ours.
    unknown = "pooling" in name or "narrower" in name
    assert unknown or load_unet(tmp_path / "m.pt", config=dict(image_size=16, **told)).config == model.config


DIFFUSERS = {
    "plain": SMALL,
    "asymmetric, two blocks": dict(SMALL, **LEVELS, downsample="conv_asymmetric") | dict(num_res_blocks=2),
    "blocks resample": dict(SMALL, downsample="block", upsample="block"),
    "heads, FiLM, classes": dict(SMALL, head_channels=8, scale_shift=True, num_classes=5),
    "another embedding": dict(SMALL, sin_first=False, freq_shift=0),
    "attention on the way up alone": dict(SMALL, attention_resolutions=(), attention_resolutions_up=(16,)),
    "no attention": dict(SMALL, attention_resolutions=(), middle_attention=False, norm_eps=1e-3, dropout=0.5),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_out_to_a_folder_and_in_again(name, tmp_path):
    model = drawn(UNetConfig(**DIFFUSERS[name]))
    save_unet(model, tmp_path / "unet", "diffusers")
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    for folder in (tmp_path, tmp_path / "unet"):  # a pipeline, and its model
        loaded = load_unet(folder)
        assert loaded.config == model.config and same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_legacy_names_of_attention():
    """query, key, value and proj_attn, before diffusers 0.15."""
    weights = recorded.fixture("ddpm_like")["sd"]
    legacy = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in weights.items():
        for new, name in legacy.items():
            key = key.replace(f".{new}.", f".{name}.")
        old[key] = value
    assert old.keys() != weights.keys()
    model = load_unet(old, config=recorded.options("ddpm_like"))
    assert same(dict(model.state_dict()), dict(recorded.network("ddpm_like").state_dict()))


def test_shards_and_bin_files(tmp_path):
    """A folder with an index, as diffusers writes large models; and torch.save's .bin."""
    model, weights = recorded.network("ddpm_like"), recorded.fixture("ddpm_like")["sd"]
    save_unet(model, tmp_path / "a", "diffusers")
    file = tmp_path / "a" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    halves = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    for i, half in enumerate(halves):
        save_file(half, tmp_path / "a" / f"part-{i}.safetensors")
    index = {"weight_map": {key: f"part-{i}.safetensors" for i, half in enumerate(halves) for key in half}}
    (tmp_path / "a" / f"{file.name}.index.json").write_text(json.dumps(index))
    assert same(dict(load_unet(tmp_path / "a").state_dict()), dict(model.state_dict()))

    save_unet(model, tmp_path / "b", "diffusers")
    (tmp_path / "b" / file.name).unlink()
    torch.save(weights, tmp_path / "b" / "diffusion_pytorch_model.bin")
    assert same(dict(load_unet(tmp_path / "b").state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("dialect, message", [
    ("openai", "'openai': sin_first True for False, freq_shift 1 for 0, norm_eps 1e-06 for 1e-05, groups 4 for 32"),
    ("guided", "'guided': sin_first True for False"),
    ("ddpm", "'ddpm': groups 4 for 32, downsample 'conv' for 'conv_asymmetric' or 'pool'"),
    ("lucidrains", "'lucidrains': .*widen 'block' for 'resample'"),
])  # fmt: skip
def test_a_network_that_a_dialect_does_not_know(dialect, message, tmp_path):
    model = UNet(UNetConfig(image_size=8, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4))
    with pytest.raises(ValueError, match=f"dialect must be one that knows this network, got .*{message}"):
        save_unet(model, tmp_path / "m.pt", dialect)
    assert not list(tmp_path.iterdir())
