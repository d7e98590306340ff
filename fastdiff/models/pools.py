"""What ends the encoder half: from the last map, or from every one on the way, to logits [B, out_channels].

Called with (h, skips): the middle's map [B, C, H, W] and those before it. Source: Dhariwal and Nichol 2021, appendix.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .attention import split_heads
from .layers import zeroed
from .norms import GroupNormSiLU

_HIDDEN = 2048


class AdaptivePool(nn.Module):
    """out(mean over pixels of silu(norm(h)))."""

    def __init__(self, channels, out_channels, norm):
        super().__init__()
        self.norm = norm(channels)
        self.out = zeroed(nn.Linear(channels, out_channels))

    def forward(self, h, skips):
        return self.out(self.norm(h).mean(dim=(2, 3)))


class AttentionPool(nn.Module):
    """out(attention of the mean token over itself and the pixels of silu(norm(h))), after adding `position` [C, N +
    1]."""

    def __init__(self, channels, out_channels, norm, head_channels, size):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = norm(channels)
        self.position = nn.Parameter(torch.empty(channels, size * size + 1).normal_(std=channels**-0.5))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, out_channels)

    def forward(self, h, skips):
        h = self.norm(h).flatten(2).transpose(1, 2)  # [B, N, C]
        h = torch.cat([h.mean(dim=1, keepdim=True), h], dim=1) + self.position.T
        q, k, v = split_heads(self.qkv(h), self.heads, "qkv")
        h = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # [B, heads, 1, C / heads]: no other token is looked at
        return self.out(h.flatten(1))


class SpatialPool(nn.Module):
    """out_2(act(out_1(the means over pixels of every map))), act = ReLU, or GroupNorm of 32 groups with SiLU."""

    def __init__(self, features, out_channels, normed):
        super().__init__()
        self.out_1 = nn.Linear(features, _HIDDEN)
        self.norm = GroupNormSiLU(_HIDDEN, 32, 1e-5) if normed else None
        self.out_2 = nn.Linear(_HIDDEN, out_channels)

    def forward(self, h, skips):
        h = self.out_1(torch.cat([z.mean(dim=(2, 3)) for z in (*skips, h)], dim=1))
        h = F.relu(h) if self.norm is None else self.norm(h[:, :, None])[:, :, 0]
        return self.out_2(h)
