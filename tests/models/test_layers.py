"""Each block against its formula in plain PyTorch."""

import copy
import functools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import UNetConfig
from fastdiff.models.attention import Attention
from fastdiff.models.layers import ResBlock, TimeEmbedding, sinusoidal_embedding, zeroed
from fastdiff.models.norms import GroupNormSiLU
from fastdiff.models.resampling import Downsample, Upsample

NORM = functools.partial(GroupNormSiLU, groups=4, eps=1e-6)


def randomized(module):
    """The module with every weight drawn, those that begin as zeros and ones too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def image(*shape, channels_last=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_sinusoids_are_ddpms(dtype):
    t = torch.tensor([0, 1, 17, 500, 999], dtype=dtype)
    found = sinusoidal_embedding(t, 6)
    assert found.dtype is torch.float32 and found.shape == (5, 6)
    for row, value in zip(found.tolist(), t.tolist(), strict=True):
        angles = [value * 10000 ** (-i / 2) for i in range(3)]
        assert row == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-4)


def test_sinusoids_are_float32_under_autocast():
    t = torch.tensor([999])
    expected = sinusoidal_embedding(t, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinusoidal_embedding(t, 64), expected)


def test_time_embedding():
    layer = randomized(TimeEmbedding(UNetConfig(channels=8, channel_mult=(1,), attention_resolutions=(), groups=4), 32))
    first, second = layer.linear_1, layer.linear_2
    t = torch.tensor([3, 700])
    hidden = F.silu(sinusoidal_embedding(t, 8) @ first.weight.T + first.bias)
    torch.testing.assert_close(layer(t), F.silu(hidden @ second.weight.T + second.bias))
    assert layer.to(torch.float64)(t).dtype is torch.float64


@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_silu_with_its_inputs(backend, silu):
    layer = randomized(GroupNormSiLU(8, 4, eps=1e-3, silu=silu))
    x, (add, scale, shift) = image(2, 8, 3, 5), image(3, 2, 8)
    h = F.group_norm(x + add[..., None, None], 4, layer.weight, layer.bias, 1e-3)
    h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(layer(x, add, scale, shift), F.silu(h) if silu else h, rtol=1e-4, atol=1e-5)


def test_group_norm_silu_is_made_as_torchs():
    """Ones and zeros, under the same names, so that weights load either way."""
    layer = GroupNormSiLU(8, 4)
    layer.load_state_dict(nn.GroupNorm(4, 8).state_dict())
    assert torch.equal(layer.weight, torch.ones(8)) and torch.equal(layer.bias, torch.zeros(8))
    assert "8, groups=4, eps=1e-06, silu=True" in repr(layer)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("channels", [8, 12])
def test_res_block(backend, scale_shift, channels):
    block = randomized(ResBlock(8, channels, 16, norm=NORM, dropout=0.5, scale_shift=scale_shift)).eval()
    x, embedding = image(2, 8, 6, 4), image(2, 16)
    h = block.conv_1(F.silu(F.group_norm(x, 4, block.norm_1.weight, block.norm_1.bias, 1e-6)))
    time = F.linear(embedding, block.time.weight, block.time.bias)[..., None, None]
    scale, shift = time.chunk(2, 1) if scale_shift else (0, 0)
    h = F.group_norm(h if scale_shift else h + time, 4, block.norm_2.weight, block.norm_2.bias, 1e-6)
    expected = block.skip(x) + block.conv_2(F.silu(h * (1 + scale) + shift))
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(block.skip, nn.Identity) == (channels == 8)


def test_dropout_acts_in_training_alone():
    block = randomized(ResBlock(8, 8, 16, norm=NORM, dropout=0.5, scale_shift=False))
    x, embedding = image(2, 8, 4, 4), image(2, 16)
    assert not torch.equal(block.train()(x, embedding), block(x, embedding))
    assert torch.equal(block.eval()(x, embedding), block(x, embedding))


@pytest.mark.parametrize("make", [
    lambda: ResBlock(8, 8, 16, norm=NORM, dropout=0.0, scale_shift=False),
    lambda: Attention(8, 2, norm=NORM),
])  # fmt: skip
def test_residual_branches_begin_as_nothing(make):
    layer, x = make(), image(2, 8, 4, 4)
    assert torch.equal(layer(x) if isinstance(layer, Attention) else layer(x, image(2, 16)), x)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_attention(backend, heads, channels_last):
    layer, x = randomized(Attention(8, heads, norm=NORM)), image(2, 8, 3, 5, channels_last=channels_last)
    h = F.group_norm(x, 4, layer.norm.weight, layer.norm.bias, 1e-6).flatten(2)  # [B, C, H * W]
    q, k, v = (torch.einsum("dc,bcn->bdn", layer.qkv.weight, h) + layer.qkv.bias[:, None]).chunk(3, 1)
    mixed = torch.empty_like(h)
    for part in torch.arange(8).chunk(heads):
        logits = torch.einsum("bcn,bcm->bnm", q[:, part], k[:, part]) / math.sqrt(len(part))
        mixed[:, part] = torch.einsum("bnm,bcm->bcn", logits.softmax(-1), v[:, part])
    out = torch.einsum("dc,bcn->bdn", layer.out.weight, mixed) + layer.out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out.unflatten(2, (3, 5)), rtol=1e-4, atol=1e-4)


def test_resolutions_halve_and_double():
    x = image(2, 8, 6, 4)
    down, up = Downsample(8), Upsample(8)
    assert down(x).shape == (2, 8, 3, 2) and up(x).shape == (2, 8, 12, 8)
    wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), F.conv2d(wide, up.weight, up.bias, padding=1))


def test_zeroed():
    layer = zeroed(nn.Linear(3, 2))
    assert not layer.weight.any() and not layer.bias.any() and layer.weight.requires_grad


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(duplicate):
    layer, x = randomized(GroupNormSiLU(8, 2, silu=False)), image(2, 8, 4)
    other = duplicate(layer)
    assert torch.equal(other(x), layer(x)) and other.weight.data_ptr() != layer.weight.data_ptr()
