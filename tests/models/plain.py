"""The U-Net once more, in plain PyTorch, written from the paper: Ho et al. 2020, appendix B, and its published code."""

import math

import torch
import torch.nn.functional as F


def embedding(t, dim):
    """DDPM's sinusoids, in float64."""
    step = math.log(10000) / (dim // 2 - 1)
    angles = [[value * math.exp(-step * i) for i in range(dim // 2)] for value in t.tolist()]
    rows = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in angles]
    return torch.tensor(rows, dtype=torch.float64)


def unet(config, weights, x, t):
    """The output of the network with this config and these named weights, in their dtype, without dropout."""

    def linear(name, h):
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def conv(name, h, **options):
        return F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(name, h):
        return F.group_norm(h, config.groups, weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)

    def block(name, h):
        skip = conv(f"{name}.skip", h) if f"{name}.skip.weight" in weights else h
        time = linear(f"{name}.time", F.silu(temb))[:, :, None, None]
        h = conv(f"{name}.conv_1", F.silu(norm(f"{name}.norm_1", h)), padding=1)
        if config.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = norm(f"{name}.norm_2", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.norm_2", h + time)
        return skip + conv(f"{name}.conv_2", F.silu(h), padding=1)

    def attention(name, h):
        _, C, H, W = h.shape
        qkv = linear(f"{name}.qkv", norm(f"{name}.norm", h).flatten(2).transpose(1, 2))
        heads = config.heads_of(C)
        q, k, v = (part.unflatten(2, (heads, C // heads)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        weight = (q @ k.transpose(2, 3) / math.sqrt(C // heads)).softmax(-1)
        mixed = linear(f"{name}.out", (weight @ v).transpose(1, 2).flatten(2))
        return h + mixed.transpose(1, 2).unflatten(2, (H, W))

    def blocks(name, count, level, h, skips, down):
        for i in range(count):
            h = block(f"{name}.blocks.{i}", h if down else torch.cat([h, skips.pop()], 1))
            if config.resolutions[level] in config.attention_resolutions:
                h = attention(f"{name}.attentions.{i}", h)
            if down:
                skips.append(h)
        return h

    temb = embedding(t, config.channels).to(x.dtype)
    temb = linear("time.linear_2", F.silu(linear("time.linear_1", temb)))
    h = conv("conv_in", x, padding=1)
    skips, levels = [h], len(config.channel_mult)
    for level in range(levels):
        h = blocks(f"down.{level}", config.num_res_blocks, level, h, skips, True)
        if level < levels - 1:
            h = conv(f"down.{level}.downsample", h, stride=2, padding=1)
            skips.append(h)
    h = block("middle.block_2", attention("middle.attention", block("middle.block_1", h)))
    for place, level in enumerate(reversed(range(levels))):
        h = blocks(f"up.{place}", config.num_res_blocks + 1, level, h, skips, False)
        if level > 0:
            h = conv(f"up.{place}.upsample", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    assert not skips
    return conv("conv_out", F.silu(norm("norm_out", h)), padding=1)
