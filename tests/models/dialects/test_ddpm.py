"""pesser's and ermongroup's port of DDPM: their network in plain PyTorch, by their names, written from the paper."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastdiff import UNet, UNetConfig, load_unet, save_unet
from tests.models.recorded import error

CONFIG = dict(
    image_size=16, channels=32, channel_mult=(1, 2, 2), num_res_blocks=2, attention_resolutions=(8,), in_channels=3,
    downsample="conv_asymmetric",
)  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = UNet(UNetConfig(**CONFIG))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    save_unet(model, tmp_path / "model.ckpt", "ddpm")
    return torch.load(tmp_path / "model.ckpt", weights_only=True)


def forward(w, x, t, levels=3, blocks=2):
    """Levels from the finest in both halves; one head; asymmetric padding; [sin, cos] over half - 1; eps 1e-6."""

    def conv(name, h, **options):
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def linear(name, h):
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, h):
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def block(name, h):
        skip = conv(f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in w else h
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h)), padding=1)
        h = h + linear(f"{name}.temb_proj", F.silu(temb))[:, :, None, None]
        return skip + conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)

    def attention(name, h):
        if f"{name}.q.weight" not in w:
            return h
        q, k, v = (conv(f"{name}.{part}", norm(f"{name}.norm", h)).flatten(2) for part in "qkv")
        weight = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(2)
        return h + conv(f"{name}.proj_out", (v @ weight.transpose(1, 2)).reshape(h.shape))

    half = w["temb.dense.0.weight"].shape[1] // 2
    angle = t[:, None].float() * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    temb = linear("temb.dense.1", F.silu(linear("temb.dense.0", torch.cat([angle.sin(), angle.cos()], 1))))
    hs = [conv("conv_in", x, padding=1)]
    for i in range(levels):
        for j in range(blocks):
            hs.append(attention(f"down.{i}.attn.{j}", block(f"down.{i}.block.{j}", hs[-1])))
        if i < levels - 1:
            hs.append(conv(f"down.{i}.downsample.conv", F.pad(hs[-1], (0, 1, 0, 1)), stride=2))
    h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", hs[-1])))
    for i in reversed(range(levels)):
        for j in range(blocks + 1):
            h = attention(f"up.{i}.attn.{j}", block(f"up.{i}.block.{j}", torch.cat([h, hs.pop()], 1)))
        if i:
            h = conv(f"up.{i}.upsample.conv", F.interpolate(h, scale_factor=2), padding=1)
    return conv("conv_out", F.silu(norm("norm_out", h)), padding=1)


def test_outputs(weights):
    model = load_unet(weights, config=dict(image_size=16))
    assert model.config.attention_resolutions == (8,) and model.config.channel_mult == (1, 2, 2)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 999])
    with torch.no_grad():
        assert error(model(x, t), forward(weights, x, t)) < 2e-5


@pytest.mark.parametrize("ema", [False, True])
def test_ddims_checkpoints_are_lists(weights, ema, tmp_path):
    """[network, optimizer, epoch, step, averages], behind DataParallel."""
    network = {f"module.{key}": value for key, value in weights.items()}
    average = {key: value + 1 for key, value in network.items()}
    torch.save([network, {"state": {}}, 7, 100, average], tmp_path / "ckpt.pth")
    model = load_unet(tmp_path / "ckpt.pth", config=dict(image_size=16), ema=ema)
    assert torch.equal(model.conv_in.bias, weights["conv_in.bias"] + ema)


def test_what_is_asked(weights):
    with pytest.raises(ValueError, match=r"config must say what the weights cannot: image_size$"):
        load_unet(weights)
    with pytest.raises(ValueError, match=r"config must hold options of the dialect \(image_size, dropout\), got size"):
        load_unet(weights, config=dict(size=16))
