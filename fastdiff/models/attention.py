"""Attention over the pixels of a map."""

import torch
import torch.nn.functional as F
from torch import nn

from . import fused
from .layers import zeroed


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(head width)) v) over the H * W positions, q, k, v = qkv(norm(x)); x [B, C, H, W].

    `inner` is the width of all heads together. With memory, `memory` [2, heads, tokens, head width] holds learned keys
    and values that precede those of the map. qkv's channels are (q, k, v) x heads x width in the order "qkv", heads x
    (q, k, v) x width in the order "heads".
    """

    def __init__(self, channels, heads, *, norm, inner=None, order="qkv", bias=True, memory=0):
        super().__init__()
        inner = channels if inner is None else inner
        self.heads, self.order, self.inner = heads, order, inner
        self.norm = norm(channels, silu=False)
        self.memory = nn.Parameter(torch.empty(2, heads, memory, inner // heads).normal_()) if memory else None
        self.qkv = nn.Linear(channels, 3 * inner, bias=bias)
        self.out = zeroed(nn.Linear(inner, channels))

    def forward(self, x):
        B, _, H, W = x.shape
        h = fused.linear(self.qkv, self.norm(x).permute(0, 2, 3, 1))  # of [B, H, W, C], which lies so
        q, k, v = split_heads(h.reshape(B, H * W, 3 * self.inner), self.heads, self.order)
        if self.memory is not None:
            k, v = (torch.cat([m.expand(B, -1, -1, -1), z], dim=2) for m, z in zip(self.memory, (k, v), strict=True))
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H * W, head width] each
        h = h.transpose(1, 2).reshape(B, H, W, self.inner)
        return fused.linear(self.out, h, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LinearAttention(nn.Module):
    """x + norm_out(out(q (k^T v))), q = softmax(q over its width) / sqrt(width), k = softmax(k over positions).

    With mean, v is divided by H * W. Cost linear in H * W. Shapes as in `Attention`, but memory is [2, heads, head
    width, tokens]. Source: Shen et al., "Efficient attention", 2021.
    """

    def __init__(self, channels, heads, *, norm, inner=None, order="qkv", bias=True, memory=0, mean=False):
        super().__init__()
        inner = channels if inner is None else inner
        self.heads, self.order, self.inner, self.mean = heads, order, inner, mean
        self.norm = norm(channels, silu=False)
        self.memory = nn.Parameter(torch.empty(2, heads, inner // heads, memory).normal_()) if memory else None
        self.qkv = nn.Linear(channels, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, channels)
        self.norm_out = norm(channels, silu=False)

    def forward(self, x):
        B, C, H, W = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        q, k, v = split_heads(self.qkv(h), self.heads, self.order)
        if self.mean:
            v = v / (H * W)
        if self.memory is not None:
            tokens = self.memory.transpose(2, 3)
            k, v = (torch.cat([m.expand(B, -1, -1, -1), z], dim=2) for m, z in zip(tokens, (k, v), strict=True))
        q = q.softmax(dim=3) * (self.inner // self.heads) ** -0.5
        h = q @ (k.softmax(dim=2).transpose(2, 3) @ v)  # [B, heads, H * W, width] by [B, heads, width, width]
        h = self.out(h.transpose(1, 2).reshape(B, H * W, self.inner))
        return x + self.norm_out(h.reshape(B, H, W, C).permute(0, 3, 1, 2))


def split_heads(qkv, heads, order):
    """qkv [B, N, 3 * inner] as q, k, v, [B, heads, N, head width] each, without a copy."""
    B, N, width = qkv.shape
    if order == "qkv":
        return qkv.view(B, N, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind()
    return qkv.view(B, N, heads, 3, width // (3 * heads)).permute(3, 0, 2, 1, 4).unbind()
