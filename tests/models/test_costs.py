"""The cost of a network, level by level."""

import pytest
import torch
from torch import nn

from fastdiff import UNet, UNetConfig
from fastdiff.models import summary

SMALL = dict(image_size=8, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4)


def test_ddpms_network():
    """35.7 million parameters and 6.2 billion multiply-adds, as the paper's code has it."""
    with torch.device("meta"):
        model = UNet(UNetConfig())
    found = summary(model, (1, 3, 32, 32))
    assert found.parameters == 35_746_307 and 12.0e9 < found.flops < 12.9e9
    assert [level.name for level in found.levels] == [
        "time", "conv_in", "down.0", "down.1", "down.2", "down.3", "middle", "up.0", "up.1", "up.2", "up.3", "norm_out",
        "conv_out",
    ]  # fmt: skip
    assert sum(level.parameters for level in found.levels) == found.parameters
    assert sum(level.flops for level in found.levels) == found.flops


def test_a_convolution_by_hand():
    model = UNet(UNetConfig(**SMALL))
    one, three = summary(model, (1, 3, 8, 8)), summary(model.double(), (3, 3, 8, 8))
    conv_in = {level.name: level for level in one.levels}["conv_in"]
    assert conv_in.parameters == 8 * 3 * 9 + 8
    assert conv_in.flops == 2 * 64 * 8 * 3 * 9
    assert conv_in.activation_bytes == 64 * 8 * 4
    assert three.flops == 3 * one.flops and three.activation_bytes == 6 * one.activation_bytes


def test_a_dropout_that_is_off_makes_nothing():
    """It returns its input."""
    without, off = (summary(UNet(UNetConfig(**SMALL, dropout=rate)), (1, 3, 8, 8)) for rate in (0.0, 0.5))
    assert without == off
    down = {level.name: level for level in off.levels}["down.0"]
    maps = 2 * (2 + 2) + 1 / 4  # two blocks' norms and convolutions, and the map of half the height and width
    assert down.activation_bytes == (maps * 8 * 64 + 2 * 8) * 4


def test_the_model_is_as_before():
    model = UNet(UNetConfig(**SMALL, num_classes=3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summary(model, (2, 3, 8, 8), y=torch.tensor([0, 1]))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_table():
    text = str(summary(UNet(UNetConfig(**SMALL)), (1, 3, 8, 8)))
    lines = text.splitlines()
    assert lines[0].split() == ["parameters", "GFLOP", "activations,", "MiB"]
    assert lines[-1].startswith("all") and lines[3].startswith("down.0") and len({len(line) for line in lines}) == 1


def test_another_network():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)])

        def forward(self, x, t):
            return self.layers[1](self.layers[0](x))

    found = summary(Net(), (1, 3, 4, 4))
    assert [(level.name, level.flops) for level in found.levels] == [("layers.0", 384), ("layers.1", 384)]
    with pytest.raises(TypeError):
        summary(Net(), (1, 3, 4, 4), y=torch.zeros(1))
