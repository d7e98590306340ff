"""A network in one file: whole or not at all, and nothing else is taken for one."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff import UNet, UNetConfig, files, load_unet

CONFIG = UNetConfig(
    image_size=8, in_channels=1, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4, dropout=0.1
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet(CONFIG)


def test_round_trip(model, tmp_path):
    model.conv_out.weight.data.normal_()
    model.save(tmp_path / "model.safetensors")
    loaded = load_unet(str(tmp_path / "model.safetensors"))
    assert loaded.config == CONFIG and not loaded.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    assert torch.equal(loaded(x, t), model.eval()(x, t))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_of_fewer_options(model, tmp_path):
    """Runs from before an option existed are loaded with what there was then."""
    old = ("image_size", "in_channels", "out_channels", "channels", "channel_mult", "num_res_blocks", "heads", "groups",
           "attention_resolutions", "head_channels", "dropout", "norm_eps", "scale_shift")  # fmt: skip
    kept = {name: CONFIG.to_dict()[name] for name in old}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "m", metadata={"fastdiff.UNet": json.dumps(kept)})
    assert load_unet(tmp_path / "m").config == CONFIG


def test_the_file_is_plain_safetensors(model, tmp_path):
    """Names, contiguous tensors and a JSON config, for whoever reads it without fastdiff."""
    model.save(tmp_path / "m")
    tensors = load_file(tmp_path / "m")
    assert tensors.keys() == model.state_dict().keys() and all(tensor.is_contiguous() for tensor in tensors.values())
    with safe_open(tmp_path / "m", "pt") as file:
        assert json.loads(file.metadata()["fastdiff.UNet"]) == CONFIG.to_dict()


def test_the_same_weights_make_the_same_bytes(model, tmp_path):
    for i in range(10):
        model.save(tmp_path / str(i))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_save_that_fails_leaves_the_old_file(model, tmp_path, monkeypatch):
    model.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_unet(tmp_path / "nothing")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_damaged_file(model, tmp_path, keep):
    model.save(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"path must be a whole safetensors file, got .*m: "):
        load_unet(tmp_path / "m")


@pytest.mark.parametrize("metadata, message", [
    (None, "path must be a file that UNet.save wrote, got .*m without its config"),
    ({"format": "pt"}, "path must be a file that UNet.save wrote"),
    ({"fastdiff.UNet": "{"}, "path must hold a config of this version's UNet, got .*m: "),
    ({"fastdiff.UNet": "[1]"}, "path must hold a config"),
    ({"fastdiff.UNet": '{"chanels": 8}'}, "path must hold a config.*chanels"),
    ({"fastdiff.UNet": '{"channels": 7}'}, "path must hold a config.*channels must be even"),
    ({"fastdiff.UNet": "{}"}, "path must hold the weights of its own config"),
])  # fmt: skip
def test_other_files(tmp_path, metadata, message):
    save_file({"weight": torch.zeros(2)}, tmp_path / "m", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load_unet(tmp_path / "m")


def test_the_public_names():
    assert fastdiff.load_unet is load_unet and fastdiff.UNet is UNet and fastdiff.UNetConfig is UNetConfig
