"""The lines that README shows, run as they stand there: other people's networks sampled, and accelerated."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import UNet, save_unet

from . import recorded

README = Path(__file__).parents[2] / "README.md"
FOLDER, FILE = '"ddpm-cifar10-32"', '"model.pt", config=dict(image_size=64, num_heads=4)'


def lines(part):
    """README's block of Python that has this in it."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if part in block]
    return block


def openai_unet():
    """improved-diffusion's for 64x64 images, small."""
    config = dataclasses.replace(recorded.network("improved_b").config, image_size=64, heads=4, num_res_blocks=1,
                                 attention_resolutions=())  # fmt: skip
    torch.manual_seed(0)
    return UNet(config).eval()


@pytest.mark.parametrize("said, make, path, dialect", [
    (FOLDER, lambda: recorded.network("ddpm_like"), "ddpm-cifar10-32", "diffusers"),
    (FILE, openai_unet, "model.pt", "openai"),
])  # fmt: skip
def test_sampling(said, make, path, dialect, tmp_path, monkeypatch):
    """The .pt by the arguments that the comment gives; in fewer steps, or both would take a minute."""
    text = lines("load_unet(")
    assert f"load_unet({FOLDER})  # or ({FILE})" in text and "steps=50" in text and len(text.splitlines()) < 5
    monkeypatch.chdir(tmp_path)
    save_unet(make(), path, dialect)
    found = {"fastdiff": fastdiff}
    exec(text.replace(FOLDER, said, 1).replace("steps=50", "steps=3"), found)
    size = make().config.image_size
    assert found["images"].shape == (4, 3, size, size) and found["images"].isfinite().all()
    again = fastdiff.Sampler(make(), found["process"], steps=3).sample(4, seed=1)
    assert torch.equal(found["images"], again)


def test_accelerating(capsys):
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))
    found = {"fastdiff": fastdiff, "network": layers}
    exec(lines("accelerate("), found)
    assert "replaced  1: GroupNorm + SiLU" in capsys.readouterr().out
    assert layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    found["report"].undo()
    assert type(layers[1]) is nn.GroupNorm and layers[0].weight.is_contiguous()
