"""The blocks of a U-Net, in the order in which it uses them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops


def sinusoidal_embedding(t, dim):
    """[sin(t w_0), ..., sin(t w_last), cos(t w_0), ..., cos(t w_last)], w_i = 10000^(-i / (dim/2 - 1)), i < dim/2.

    t [B], int or float; dim even and at least 4. Returns [B, dim] float32, whatever t's dtype and autocast.
    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5, as Ho et al. 2020 arrange it.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
    angle = t.to(torch.float32)[:, None] * torch.exp(-math.log(10000) * exponent)  # [B, dim/2]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """silu(linear_2(silu(linear_1(sinusoidal_embedding(t))))): t [B] to [B, width].

    The last SiLU is the one that every residual block would begin with.
    """

    def __init__(self, dim, width):
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t):
        embedding = sinusoidal_embedding(t, self.dim).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(embedding))))


class GroupNormSiLU(nn.Module):
    """act(GroupNorm(x + add) * (1 + scale) + shift), one fused op; x [B, C, *]; add, scale, shift [B, C] or None."""

    def __init__(self, channels, groups, eps=1e-6, silu=True):
        super().__init__()
        self.groups, self.eps, self.silu = groups, eps, silu
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, add=None, scale=None, shift=None):
        return ops.group_norm_silu(
            x, self.groups, self.weight, self.bias, eps=self.eps, add=add, scale=scale, shift=shift, silu=self.silu
        )

    def extra_repr(self):
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}, silu={self.silu}"


class ResBlock(nn.Module):
    """skip(x) + conv_2(dropout(norm_2(conv_1(norm_1(x)) + time))), norms with SiLU: [B, C_in, H, W] to [B, C, H, W].

    With scale_shift the embedding scales and shifts the second norm's result instead of being added before it.
    """

    def __init__(self, in_channels, channels, embedding_width, *, groups, eps, dropout, scale_shift):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm_1 = GroupNormSiLU(in_channels, groups, eps)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(embedding_width, 2 * channels if scale_shift else channels)
        self.norm_2 = GroupNormSiLU(channels, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x, embedding):
        h = self.conv_1(self.norm_1(x))
        time = self.time(embedding)  # [B, C], or [B, 2C] with scale_shift
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm_2(h, scale=scale, shift=shift)
        else:
            h = self.norm_2(h, add=time)
        return self.skip(x) + self.conv_2(self.dropout(h))


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(head width)) v) over the H * W positions, q, k, v = qkv(norm(x)); x [B, C, H, W]."""

    def __init__(self, channels, heads, *, groups, eps):
        super().__init__()
        self.heads = heads
        self.norm = GroupNormSiLU(channels, groups, eps, silu=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x):
        B, C, H, W = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view of a channels_last tensor
        q, k, v = self.qkv(h).reshape(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H * W, C / heads]
        h = self.out(h.transpose(1, 2).reshape(B, H * W, C))
        return x + h.reshape(B, H, W, C).permute(0, 3, 1, 2)


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2: [B, C, H, W] to [B, C, H/2, W/2]."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Nearest neighbours, then a 3x3 convolution: [B, C, H, W] to [B, C, 2H, 2W]."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x):
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def zeroed(layer):
    """The layer with its weight and bias at zero: a residual branch that begins as nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
