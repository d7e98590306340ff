"""Out of every wrapper, with every wrong key in one error, and one copy in memory."""

import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from fastdiff import UNet, UNetConfig, load_unet, save_unet

from . import recorded

NAME = "improved_b"
OPTIONS = dict(image_size=16, num_heads=2)


def weights():
    return dict(recorded.fixture(NAME)["sd"])


def same(model):
    expected = recorded.network(NAME).state_dict()
    return all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def prefixed(prefix, added=0):
    return {f"{prefix}{key}": value + added for key, value in weights().items()}


@pytest.mark.parametrize("content", [
    weights(),
    prefixed("module."),
    prefixed("model."),
    prefixed("_orig_mod."),
    prefixed("module.model."),
    {"state_dict": weights(), "epoch": 3},
    {"state_dict": prefixed("model.") | {"betas": torch.zeros(3)}},
    {"model": prefixed("module."), "opt": {}, "step": 1},
    {"model": {"state_dict": weights()}} | {"ema": prefixed("", 1)},
], ids=lambda content: next(iter(content)))  # fmt: skip
def test_wrappers(content, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    assert same(load_unet(tmp_path / "m.pt", config=OPTIONS))
    assert same(load_unet(content, config=OPTIONS))


@pytest.mark.parametrize("content", [
    {"model": prefixed("", 1), "ema": weights()},
    {"model": prefixed("", 1), "ema": prefixed("module.")},
    prefixed("ema_model.") | prefixed("online_model.", 1) | {"initted": torch.tensor(True)},
    {"ema": prefixed("ema_model.module.") | prefixed("online_model.", 1)},
], ids=range(4))  # fmt: skip
def test_averages(content, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    assert same(load_unet(tmp_path / "m.pt", config=OPTIONS, ema=True))
    if len(content) > 1:
        assert not same(load_unet(tmp_path / "m.pt", config=OPTIONS))


@pytest.mark.parametrize("content, got", [(weights(), "True"), ([weights(), {}, 3, 4], "a list of 4")])
def test_no_averages(content, got, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=f"ema must be False for a checkpoint without average.*, got {got}"):
        load_unet(tmp_path / "m.pt", config=OPTIONS, ema=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch(zipped, tmp_path):
    torch.save(weights(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(tmp_path / "m.pt") == zipped
    assert same(load_unet(tmp_path / "m.pt", config=OPTIONS))


def test_no_code_is_unpickled(tmp_path):
    torch.save({"model": weights(), "args": UNetConfig()}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"path must be safetensors, or torch.save's weights alone, .*m.pt: Weights"):
        load_unet(tmp_path / "m.pt", config=OPTIONS)


@pytest.mark.parametrize("keep", [20, 0.5])
def test_a_damaged_file(keep, tmp_path):
    torch.save(weights(), tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"path must be safetensors, or torch\.save's weights alone"):
        load_unet(tmp_path / "m.pt", config=OPTIONS)


@pytest.mark.parametrize("content", [b"hello world, this is text", b"<!DOCTYPE html><html>", b"\x80\x02.and so on"])
def test_a_file_of_something_else(content, tmp_path):
    file = tmp_path / "m.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must .*, got .*m.pt"):
        load_unet(file)


def test_every_wrong_key_is_in_one_error(tmp_path):
    wrong = weights()
    del wrong["time_embed.2.bias"], wrong["out.0.weight"]
    wrong["extra.weight"] = torch.zeros(1)
    wrong["middle_block.1.qkv.weight"] = torch.zeros(192, 32, 1)
    wrong["input_blocks.0.0.bias"] = torch.zeros(31)
    save_file(wrong, tmp_path / "m.safetensors")
    file = tmp_path / "m.safetensors"
    for source, place, got in ((wrong, "source", "a state dict"), (file, "path", file)):
        with pytest.raises(ValueError) as error:
            load_unet(source, config=OPTIONS)
        assert str(error.value) == (
            f"{place} must hold the weights of its own config, got {got}: 2 missing: time_embed.2.bias, out.0.weight;"
            " 1 unexpected: extra.weight; 2 of another shape: input_blocks.0.0.bias [31] for [32],"
            " middle_block.1.qkv.weight [192, 32, 1] for [192, 64, 1]"
        )


def test_too_little_to_tell(tmp_path):
    few = {key: value for key, value in weights().items() if "input_blocks.1" not in key and "out." not in key}
    with pytest.raises(ValueError, match=r"source must be a checkpoint of openai, got a state dict: no '.*' among"):
        load_unet(few, config=OPTIONS)


@pytest.mark.parametrize("call, kind, message", [
    (lambda: load_unet({}), ValueError, "source must be a file that UNet.save wrote, got a state dict without its"),
    (lambda: load_unet(weights()), ValueError, "config must say .*: image_size, num_heads or num_head_channels$"),
    (lambda: load_unet(weights(), "guided"), ValueError, "image_size, .*num_head_channels, use_new_attention_order$"),
    (lambda: load_unet(weights(), config=OPTIONS | {"width": 3}), ValueError, "options of the dialect .* got width"),
    (lambda: load_unet(weights(), config=3), TypeError, "config must be a UNetConfig or a dict, got int"),
    (lambda: load_unet(weights(), "keras"), ValueError, "dialect must be auto or one of fastdiff, openai, .*'keras'"),
    (lambda: load_unet(None), TypeError, "source must be a path or a state dict, got NoneType"),
    (lambda: load_unet(weights(), dtype=torch.int8), ValueError, "dtype must be a floating torch.dtype or None, got"),
    (lambda: load_unet("."), FileNotFoundError, "path must be a folder with config.json, or unet/config.json, got"),
    (lambda: save_unet(torch.nn.Linear(1, 1), "m"), TypeError, "model must be a UNet, got Linear"),
    (lambda: save_unet(UNet, "m", "keras"), ValueError, "dialect must be one of fastdiff, .*, got 'keras'"),
])  # fmt: skip
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_given_state_dict_is_copied():
    mine = weights()
    model = load_unet(mine, config=OPTIONS)
    theirs = {value.data_ptr() for value in mine.values()}
    assert not theirs & {parameter.data_ptr() for parameter in model.parameters()}
    assert mine.keys() == weights().keys()


def test_dtype_and_layout():
    model = load_unet(weights(), config=OPTIONS, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training


MEMORY = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from fastdiff import load_unet

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

class Watch(TorchDispatchMode):
    highest = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.highest = max(self.highest, anonymous())
        return result

models, config = [], dict(image_size=32, num_heads=1)
with Watch():
    load_unet(sys.argv[1], config=config)  # what the first call imports
for path in sys.argv[2:]:
    before = anonymous()
    with Watch() as watch:
        models.append(load_unet(path, config=config))
    size = sum(p.numel() * p.element_size() for p in models[-1].parameters())
    print(size, watch.highest - before, anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_are_in_memory_once(tmp_path):
    """Anonymous memory at every operation of loading, and after; the mapped file is the kernel's to drop.

    A file of the format before zip files cannot be mapped: each weight leaves it as it is taken, and malloc keeps some.
    """
    openai = dict(sin_first=False, freq_shift=0, norm_eps=1e-5, qkv_order="heads", heads=1)
    paths = [str(tmp_path / name) for name in ("small.pt", "large.pt", "large.safetensors", "old.pt")]
    save_unet(UNet(UNetConfig(channels=32, stem_channels=32, **openai)), paths[0], "openai")
    large = UNet(UNetConfig(channels=96, stem_channels=96, **openai))
    for path in paths[1:3]:
        save_unet(large, path, "openai")
    torch.save(torch.load(paths[1], weights_only=True), paths[3], _use_new_zipfile_serialization=False)
    output = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=True)
    found = [[int(word) for word in line.split()] for line in output.stdout.splitlines()]
    assert len(found) == 3
    for (size, highest, after), limit in zip(found, (1.1, 1.1, 1.3), strict=True):
        assert size > 75e6
        assert 0.5 * size < highest < limit * size and after < limit * size
