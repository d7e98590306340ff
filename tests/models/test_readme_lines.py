"""The lines that README shows, run as they stand: other people's networks sampled, and accelerated."""

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import save_unet

from . import recorded

SAMPLE_A_FOLDER = """
import fastdiff

model = fastdiff.load_unet("ddpm-cifar10-32")
process = fastdiff.GaussianProcess(fastdiff.schedules.linear(1000), prediction="eps", variance="fixed_large")
images = fastdiff.Sampler(model, process, steps=5).sample(4, seed=1)
"""

SAMPLE_OPENAI = """
import fastdiff

model = fastdiff.load_unet("model.pt", config=dict(image_size=16, num_heads=2))
process = fastdiff.GaussianProcess(fastdiff.schedules.cosine(4000), prediction="eps", variance="fixed_small")
images = fastdiff.Sampler(model, process, steps=5).sample(4, seed=1)
"""

ACCELERATE = """
import fastdiff

report = fastdiff.accelerate(model, channels_last=True, probe=(x, t))
print(report)
"""


@pytest.mark.parametrize("text, name, path", [
    (SAMPLE_A_FOLDER, "ddpm_like", "ddpm-cifar10-32"), (SAMPLE_OPENAI, "improved_b", "model.pt"),
])  # fmt: skip
def test_sampling(text, name, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_unet(recorded.network(name), path, recorded.DIALECTS[name])
    found = {}
    exec(text, found)
    assert found["images"].shape == (4, 3, 16, 16) and found["images"].isfinite().all()
    assert len(text.strip().splitlines()) == 5
    again = fastdiff.Sampler(recorded.network(name), found["process"], steps=5).sample(4, seed=1)
    assert torch.equal(found["images"], again)


def test_accelerating(capsys):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))

        def forward(self, x, t):
            return self.layers(x)

    found = dict(model=Foreign(), x=torch.randn(2, 3, 8, 8), t=torch.tensor([1, 2]))
    exec(ACCELERATE, found)
    assert "replaced  layers.1: GroupNorm + SiLU" in capsys.readouterr().out
