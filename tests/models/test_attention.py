"""Attention whose heads need not fill the width, with memory; linear attention; the pools that end a classifier."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastdiff.models.attention import Attention, LinearAttention
from fastdiff.models.norms import GroupNormSiLU, RMSNormSiLU
from fastdiff.models.pools import AdaptivePool, AttentionPool, SpatialPool

from .formulas import image, near, randomized, rms

GROUP = functools.partial(GroupNormSiLU, groups=4, eps=1e-6)


@pytest.mark.parametrize("order", ["qkv", "heads"])
@pytest.mark.parametrize("memory", [0, 3])
def test_attention(order, memory):
    """Two heads of width 4, wider or narrower than the map, with keys and values beside those of the map."""
    layer = randomized(Attention(6, 2, norm=RMSNormSiLU, inner=8, order=order, bias=False, memory=memory))
    x = image(2, 6, 3, 5)
    qkv = torch.einsum("dc,bcn->bnd", layer.qkv.weight, rms(x, layer.norm.weight).flatten(2))
    mixed = []
    for head in range(2):
        if order == "qkv":
            q, k, v = (qkv[..., i * 8 + head * 4 : i * 8 + head * 4 + 4] for i in range(3))
        else:
            q, k, v = (qkv[..., head * 12 + i * 4 : head * 12 + i * 4 + 4] for i in range(3))
        if memory:
            k, v = (torch.cat([layer.memory[i, head].expand(2, -1, -1), z], 1) for i, z in ((0, k), (1, v)))
        mixed.append((q @ k.transpose(1, 2) / 2).softmax(2) @ v)
    out = F.linear(torch.cat(mixed, 2), layer.out.weight, layer.out.bias)
    near(layer(x), x + out.transpose(1, 2).unflatten(2, (3, 5)))


@pytest.mark.parametrize("memory, mean", [(0, False), (3, False), (0, True)])
def test_linear_attention(memory, mean):
    layer = randomized(LinearAttention(6, 2, norm=RMSNormSiLU, inner=8, bias=False, memory=memory, mean=mean))
    x = image(2, 6, 3, 5)
    qkv = torch.einsum("dc,bcn->bdn", layer.qkv.weight, rms(x, layer.norm.weight).flatten(2))
    mixed = []
    for head in range(2):
        q, k, v = (qkv[:, i * 8 + head * 4 : i * 8 + head * 4 + 4] for i in range(3))  # [B, 4, N]
        if memory:
            k, v = (torch.cat([layer.memory[i, head].expand(2, -1, -1), z], 2) for i, z in ((0, k), (1, v)))
        context = torch.einsum("bdn,ben->bde", k.softmax(2), v / 15 if mean else v)
        mixed.append(torch.einsum("bde,bdn->ben", context, q.softmax(1) / 2))
    out = torch.einsum("cd,bdn->bcn", layer.out.weight, torch.cat(mixed, 1)) + layer.out.bias[:, None]
    near(layer(x), x + rms(out.unflatten(2, (3, 5)), layer.norm_out.weight))


def test_adaptive_pool():
    layer, h = randomized(AdaptivePool(8, 5, GROUP)), image(2, 8, 3, 3)
    near(layer(h, []), layer.norm(h).mean((2, 3)) @ layer.out.weight.T + layer.out.bias)


def test_attention_pool():
    """Every token attends, as in the original, and the first alone is taken."""
    layer, h = randomized(AttentionPool(8, 5, GROUP, 4, 3)), image(2, 8, 3, 3)
    tokens = layer.norm(h).flatten(2)
    tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], 2) + layer.position
    q, k, v = layer.qkv(tokens.transpose(1, 2)).chunk(3, 2)
    heads = [slice(0, 4), slice(4, 8)]
    mixed = [(q[..., s] @ k[..., s].transpose(1, 2) / 2).softmax(2) @ v[..., s] for s in heads]
    near(layer(h, []), layer.out(torch.cat(mixed, 2))[:, 0])


@pytest.mark.parametrize("normed", [False, True])
def test_spatial_pool(normed):
    layer, h, skips = randomized(SpatialPool(14, 5, normed)), image(2, 8, 3, 3), [image(2, 2, 6, 6), image(2, 4, 3, 3)]
    hidden = layer.out_1(torch.cat([z.mean((2, 3)) for z in (*skips, h)], 1))
    hidden = F.silu(F.group_norm(hidden, 32, layer.norm.weight, layer.norm.bias)) if normed else F.relu(hidden)
    near(layer(h, skips), layer.out_2(hidden))
