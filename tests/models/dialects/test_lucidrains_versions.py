"""denoising-diffusion-pytorch before 2.0: networks recorded by running its versions 0.28 to 1.11, dim 16, dim_mults (1,
2), full_attn (False, True) from 1.8 on.

Recorded: names and shapes of the weights, the output, and gradients of mean(output^2) in x and in some weights. The
weights were drawn from numpy's RandomState(0), in the order of the names.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import UNet, UNetConfig, load_unet, save_unet
from tests.models import recorded

VERSIONS = ("0.28.0", "1.5.0", "1.7.0", "1.7.2", "1.7.7", "1.8.15", "1.11.1")
T = torch.tensor([3, 999])


@functools.cache
def data():
    with np.load(Path(__file__).parents[2] / "data" / "unets" / "lucidrains_versions.npz") as file:
        return {key: file[key] for key in file}


@functools.cache
def drawn(version):
    """(the weights, x) of a recorded network."""
    draws, weights = np.random.RandomState(0), {}
    for name, shape in json.loads(str(data()[f"{version}.shapes"])).items():
        array = draws.standard_normal(shape).astype(np.float32)
        if name.endswith((".g", "norm.weight")):
            array = 1 + array / 5
        elif len(shape) > 1 and "mem_kv" not in name:
            array = array / np.float32(np.sqrt(np.prod(shape[1:])))
        elif name.endswith("bias"):
            array = array / 5
        weights[name] = torch.from_numpy(array)
    return weights, torch.from_numpy(draws.standard_normal((2, 3, 16, 16)).astype(np.float32))


def told(version):
    """What a user has to say: from 1.9 on nothing but the size."""
    more = {"1.8.15": dict(attn_heads=4), "1.11.1": {}}
    return dict(image_size=16) | more.get(version, dict(version=version))


@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_and_gradients(backend, version):
    weights, x = drawn(version)
    model, x = load_unet(weights, config=told(version)), x.clone().requires_grad_()
    output = model(x, T)
    output.square().mean().backward()
    assert recorded.error(output.detach(), torch.from_numpy(data()[f"{version}.output"])) < 2e-5
    assert recorded.largest_of_samples(x.grad, torch.from_numpy(data()[f"{version}.grad.x"])) < 2e-5
    found = recorded.gradients(model, "lucidrains")
    start = f"{version}.grad.param."
    wanted = [key.removeprefix(start) for key in data() if key.startswith(start)]
    assert len(wanted) > 5
    for name in wanted:
        assert recorded.largest(found[name], torch.from_numpy(data()[start + name])) < 2e-5, name


@pytest.mark.parametrize("version", VERSIONS)
def test_in_and_out_is_bitwise_the_same(version, tmp_path):
    weights, _ = drawn(version)
    save_unet(load_unet(weights, config=told(version)), tmp_path / "m.pt", "lucidrains")
    back = torch.load(tmp_path / "m.pt", weights_only=True)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("version, other", [
    ("1.5.0", "1.7.0"), ("1.7.0", "1.5.0"), ("1.7.0", "1.7.2"), ("1.7.2", "1.7.4"), ("1.7.7", "1.7.3"),
])  # fmt: skip
def test_another_version_is_another_function(version, other):
    """The mean in attention's norm, the standardised weights, the values over their number: no shape tells them."""
    weights, x = drawn(version)
    with torch.no_grad():
        output = load_unet(weights, config=dict(image_size=16, version=other))(x, T)
    assert recorded.error(output, torch.from_numpy(data()[f"{version}.output"])) > 1e-3


def test_a_trainers_file_tells_its_version(tmp_path):
    """From 1.0 on: {step, model, opt, ema, scaler, version}."""
    weights, _ = drawn("1.5.0")
    content = dict(step=1, model={f"model.{name}": value for name, value in weights.items()}, version="1.5.0")
    torch.save(content, tmp_path / "model-1.pt")
    for source in (content, tmp_path / "model-1.pt"):
        model = load_unet(source, config=dict(image_size=16))
        assert model.config == load_unet(weights, config=told("1.5.0")).config
    assert load_unet(content, config=dict(image_size=16, version="1.7.3")).config.attention_norm == "rms"


@pytest.mark.parametrize("version, given, message", [
    ("1.5.0", {}, "config must say what the weights cannot: image_size, version$"),
    ("1.8.15", {}, "config must say what the weights cannot: image_size, attn_heads$"),
    ("1.8.15", dict(image_size=16, attn_heads=(4, 5)), r"attn_heads must be .* divides \[128, 128\] channels"),
    ("1.8.15", dict(image_size=16, attn_heads=(4,)), r"attn_heads must be one per level .*, got \(4,\)"),
    ("0.28.0", dict(image_size=16, version="0.32.0"), "version must be at least 0.28, below 0.32, .*, got '0.32.0'"),
    ("1.5.0", dict(image_size=16, version="0.31.1"), "version must be at least 0.32, below 1.8, .*, got '0.31.1'"),
    ("1.5.0", dict(image_size=16, version="0.27.12"), "version must be at least 0.32, .*, got '0.27.12'"),
    ("1.7.0", dict(image_size=16, version="1.7.1"), "version must be .* not 1.7.1, for these weights, got '1.7.1'"),
    ("1.11.1", dict(image_size=16, version="2.0.0"), "version must be at least 1.9, below 2, .*, got '2.0.0'"),
    ("1.5.0", dict(image_size=16, version="new"), "version must be a version of denoising-diffusion-pytorch such as"),
    ("1.5.0", dict(image_size=16, version=1.5), r"version must be a version .* such as '1\.5\.0', got 1\.5"),
])  # fmt: skip
def test_refusals(version, given, message):
    with pytest.raises(ValueError, match=message):
        load_unet(drawn(version)[0], config=given)


@pytest.mark.parametrize("name", [
    "mid_block1.ds_conv.weight", "mid_block1.block1.block.0.weight", "mid_attn.fn.g", "mid_attn.fn.norm.b",
], ids=["0.6", "0.14", "0.5", "0.20"])  # fmt: skip
def test_weights_before_0_28_are_refused(name):
    """ConvNeXt's blocks, Mish, attention behind a factor, one skip connection per level."""
    with pytest.raises(ValueError, match=r"dialect must be lucidrains since 0\.28, got weights of an older version"):
        load_unet({"mid_attn.fn.fn.to_qkv.weight": torch.zeros(1), name: torch.zeros(1)})


@pytest.mark.parametrize("changes, message", [
    (dict(standardized=False), "no version has norm 'group', attention_norm 'layer'"),
    (dict(heads=2), "got 'lucidrains before 1.8': heads 2 for 4"),
    (dict(heads=[4, 4]), "no version has .*, memory 0"),
    (dict(norm="rms"), "no version has norm 'rms'"),
    (dict(attention_resolutions=[8], linear_attention_resolutions=[16]), "before 1.8': attention_resolutions"),
])  # fmt: skip
def test_what_no_version_has_is_not_written(changes, message, tmp_path):
    options = load_unet(drawn("1.5.0")[0], config=told("1.5.0")).config.to_dict()
    with pytest.raises(ValueError, match=message):
        save_unet(UNet(UNetConfig(**{**options, **changes})), tmp_path / "m.pt", "lucidrains")
    assert not list(tmp_path.iterdir())
