"""The parts that DDPM's own network lacks, each against its formula in plain PyTorch."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff import UNet, UNetConfig, ops
from fastdiff.models.layers import ConvFirstBlock, ResBlock, TimeEmbedding, sinusoidal_embedding
from fastdiff.models.norms import GroupNormSiLU, LayerNorm, RMSNormSiLU
from fastdiff.models.resampling import Downsample, Nearest, Pool, Shrink, Unshuffle, Upsample, Widen

from .formulas import image, near, randomized, rms

GROUP = functools.partial(GroupNormSiLU, groups=4, eps=1e-6)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_rms_norm(film, silu):
    layer, x = randomized(RMSNormSiLU(8, silu=silu)), image(2, 8, 3, 5)
    scale, shift = image(2, 2, 8) if film else (None, None)
    expected = rms(x, layer.weight)
    if film:
        expected = expected * (1 + scale[..., None, None]) + shift[..., None, None]
    near(layer(x, scale=scale, shift=shift), F.silu(expected) if silu else expected)
    assert not layer(torch.zeros(1, 8, 2, 2)).isnan().any()
    near(ops.rms_norm_silu(x.flatten(2), layer.weight, silu=False), rms(x, layer.weight).flatten(2))


@pytest.mark.parametrize("dtype, eps", [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("silu", [False, True])
def test_layer_norm(dtype, eps, silu):
    """Over a pixel's channels, with the eps of lucidrains' in half precision."""
    layer, x = randomized(LayerNorm(8, silu=silu)).to(dtype), (image(2, 8, 3, 5) / 30).to(dtype)
    exact, weight = x.double(), layer.weight.double()[:, None, None]
    variance = exact.var(1, correction=0, keepdim=True)
    expected = (exact - exact.mean(1, keepdim=True)) / (variance + eps).sqrt() * weight
    expected = (F.silu(expected) if silu else expected).to(dtype)
    torch.testing.assert_close(layer(x), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [GROUP, RMSNormSiLU])
@pytest.mark.parametrize("channels", [8, 12])
def test_conv_first_block(norm, channels):
    block = randomized(ConvFirstBlock(8, channels, 16, norm=norm, dropout=0.5)).eval()
    x, embedding = image(2, 8, 6, 4), image(2, 16)
    scale, shift = F.linear(embedding, block.time.weight, block.time.bias)[..., None, None].chunk(2, 1)

    def plain(layer, h):
        return rms(h, layer.weight) if norm is RMSNormSiLU else F.group_norm(h, 4, layer.weight, layer.bias, 1e-6)

    h = F.silu(plain(block.norm_1, block.conv_1(x)) * (1 + scale) + shift)
    near(block(x, embedding), block.skip(x) + F.silu(plain(block.norm_2, block.conv_2(h))))
    assert isinstance(block.skip, nn.Identity) == (channels == 8)
    assert not torch.equal(block.train()(x, embedding), block(x, embedding))


@pytest.mark.parametrize("resample, plain", [
    (Pool(), lambda h: h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))),
    (Nearest(), lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3)),
])  # fmt: skip
def test_a_block_that_resamples(resample, plain):
    """Between SiLU and the first convolution, and on the way past."""
    block = randomized(ResBlock(8, 8, 16, norm=GROUP, resample=resample))
    x, embedding = image(2, 8, 6, 4), image(2, 16)
    h = block.conv_1(plain(block.norm_1(x)))
    near(block(x, embedding), plain(x) + block.conv_2(block.norm_2(h, add=block.time(embedding))))


def test_resampling():
    x = image(2, 8, 6, 4)
    layer = Downsample(8, asymmetric=True)
    near(layer(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias, stride=2))
    assert not torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))
    layer = Unshuffle(8, 12)
    near(layer(x), F.conv2d(F.pixel_unshuffle(x, 2), layer.weight.reshape(12, 32, 1, 1), layer.bias))
    layer = Shrink(8, 12)
    near(layer(x), F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))
    assert layer(x).shape == (2, 12, 3, 2) and layer.weight.shape == (12, 8, 4, 4)
    assert Upsample(8, 4)(x).shape == (2, 4, 12, 8) and Widen(8, 4)(x).shape == (2, 4, 6, 4)


def config(**options):
    return UNetConfig(image_size=8, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4, **options)


def test_time_embedding_of_classes():
    layer, t, y = randomized(TimeEmbedding(config(num_classes=3), 32)), torch.tensor([3, 700]), torch.tensor([2, 0])
    hidden = layer.linear_2(F.silu(layer.linear_1(sinusoidal_embedding(t, 8))))
    near(layer(t, y), F.silu(hidden + layer.classes.weight[y]))


def test_time_embedding_of_fourier_features():
    layer, t = randomized(TimeEmbedding(config(fourier_features=6, embedding_act="gelu"), 32)), torch.tensor([0.1, 2.0])
    angle = 2 * math.pi * t[:, None] * layer.fourier
    features = torch.cat([t[:, None], angle.sin(), angle.cos()], 1)
    near(layer(t), F.silu(layer.linear_2(F.gelu(layer.linear_1(features)))))


@pytest.mark.parametrize("freq_shift, theta", [(0, 10000), (1, 10000), (0.5, 100)])
def test_sinusoids(freq_shift, theta):
    t = torch.tensor([0, 17, 999])
    found = sinusoidal_embedding(t, 6, sin_first=False, freq_shift=freq_shift, theta=theta)
    for row, value in zip(found.tolist(), t.tolist(), strict=True):
        angles = [value * theta ** (-i / (3 - freq_shift)) for i in range(3)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-4)


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_the_encoder_half(pool):
    model = UNet(config(pool=pool, out_channels=5, head_channels=4)).eval()
    assert not hasattr(model, "up") and model(torch.randn(2, 3, 8, 8), torch.tensor([1, 2])).shape == (2, 5)


@pytest.mark.parametrize("options, given, message", [
    (dict(num_classes=3), {}, "y must be given where config.num_classes is 3, got None"),
    (dict(), dict(y=torch.tensor([1])), r"y must be None where config.num_classes is None, got tensor"),
    (dict(num_classes=3), dict(y=torch.tensor([1, 2])), r"y must have shape \[1\], got \[2\]"),
    (dict(num_classes=3), dict(y=1), r"y must have shape \[1\], got int"),
    (dict(low_res=True), {}, "low_res must be given where config.low_res is True, got None"),
    (dict(low_res=True), dict(low_res=torch.zeros(1, 2, 4, 4)), r"low_res must have shape \[1, 3, 4, 4\], got \[1, 2"),
    (dict(low_res=True), dict(low_res=torch.zeros(1, 3, 4, 4).byte()), "low_res must be floating, on x's scale, got"),
    (dict(), dict(low_res=torch.zeros(1, 3, 4, 4)), "low_res must be None where config.low_res is False"),
    (dict(self_condition=True), dict(x_self_cond=torch.zeros(1, 3, 4, 4)), r"x_self_cond must have shape \[1, 3, 8"),
    (dict(), dict(x_self_cond=torch.zeros(1, 3, 8, 8)), "x_self_cond must be None where config.self_cond"),
])  # fmt: skip
def test_bad_inputs(options, given, message):
    with pytest.raises(ValueError, match=message):
        UNet(config(**options))(torch.zeros(1, 3, 8, 8), torch.zeros(1), **given)


def test_self_conditioning_is_zeros_where_nothing_is_given():
    model, x, t = randomized(UNet(config(self_condition=True))), image(2, 3, 8, 8), torch.tensor([1, 2])
    assert torch.equal(model(x, t), model(x, t, x_self_cond=torch.zeros_like(x)))
    assert not torch.equal(model(x, t), model(x, t, x_self_cond=x))


@pytest.mark.parametrize("options", [
    dict(downsample="conv_asymmetric"),
    dict(downsample="block", upsample="block", num_classes=3),
    dict(norm="rms", norm_first=False, scale_shift=True, widen="resample", downsample="unshuffle", memory=2,
         linear_attention_resolutions=(8,), heads=2, head_channels=4, qkv_bias=False),
    dict(norm_first=False, scale_shift=True, widen="resample", downsample="conv_4x4", attention_norm="layer",
         linear_attention_resolutions=(8,), heads=2, head_channels=4, linear_mean=True, standardized=True),
], ids=["asymmetric", "blocks", "lucidrains", "lucidrains 0.28"])  # fmt: skip
def test_channels_last_throughout(options):
    model = randomized(UNet(config(**options))).eval()
    seen = []

    def look(module, arguments, output):
        linear = isinstance(module, torch.nn.Linear)  # of [B, H, W, C]
        memory_format = torch.contiguous_format if linear else torch.channels_last
        for tensor in (*arguments, output):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4 and tensor.shape[1] > 1:
                seen.append((type(module).__name__, tensor.is_contiguous(memory_format=memory_format)))

    for module in model.modules():
        if module is not model:
            module.register_forward_hook(look)
    y = torch.tensor([0, 1]) if model.config.num_classes else None
    model(image(2, 3, 8, 8), torch.tensor([1, 2]), y)
    assert seen and not [name for name, last in seen if not last]
