"""What `accelerate` says it did, its probe, its layout, and its undoing."""

import pytest
import torch
from torch import nn

import fastdiff

from .foreign import Block, GroupNorm32, Net, assert_near, drawn, image

X, T = image(2, 8, 6, 5), torch.tensor([3.0, 500.0])


def test_channels_last_and_back():
    model = drawn(Net(False))
    args = (image(2, 3, 6, 5), T)
    expected = model(*args)
    report = fastdiff.accelerate(model, channels_last=True)
    weight = model.blocks[0].conv_1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    output = model(*args)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_near(output.contiguous(), expected)
    report.undo()
    assert model.blocks[0].conv_1.weight.is_contiguous()


def test_a_probe_is_compared():
    model = drawn(Net(True)).train()
    report = fastdiff.accelerate(model, probe=(image(2, 3, 6, 5), T))
    assert 0 < report.error < 1e-4 and model.training and model.blocks[0].drop.training
    assert str(report).startswith("6 of 6 norms replaced, the probe's output within ")
    assert "\n  replaced  blocks.0.norm_1: GroupNorm + SiLU" in str(report)


def test_a_probe_that_differs_undoes_all(monkeypatch):
    from fastdiff.models.acceleration import kernels

    monkeypatch.setattr(kernels.ops, "group_norm_silu", lambda x, *args, **options: x)
    model = drawn(Net(True))
    with pytest.raises(ValueError, match=r"probe must give its output of before within 0\.0001, got"):
        fastdiff.accelerate(model, probe=(image(2, 3, 6, 5), T))
    assert type(model.blocks[0]) is Block and type(model.norm_out) is nn.GroupNorm


def test_twice_is_as_once_and_restore_undoes():
    model = drawn(Net(True))
    first, second = fastdiff.accelerate(model), fastdiff.accelerate(model)
    assert first.sites == second.sites
    fastdiff.restore(model)
    norms = {type(module) for module in model.modules() if "Norm" in type(module).__name__}
    assert norms == {nn.GroupNorm, GroupNorm32}


def test_nothing_to_do():
    assert str(fastdiff.accelerate(nn.Linear(2, 2))) == "0 of 0 norms replaced"


@pytest.mark.parametrize("call, message", [
    (lambda: fastdiff.accelerate(len), "module must be a torch.nn.Module, got builtin_function_or_method"),
    (lambda: fastdiff.accelerate(nn.Linear(1, 1), probe=X), "probe must be a tuple of the network's arguments"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_probe_is_not_written_into():
    class Writing(nn.GroupNorm):
        def forward(self, x):
            x.mul_(x)
            return super().forward(x)

    probe = torch.randn(2, 8, 3, 3)
    before = probe.clone()
    model = nn.Sequential(Writing(4, 8), nn.GroupNorm(4, 8))
    assert fastdiff.accelerate(model, probe=(probe,)).error < 1e-5 and torch.equal(probe, before)
