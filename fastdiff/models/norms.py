"""Normalisation with its activation and the time embedding's scale, shift or add: one op each."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops


class GroupNormSiLU(nn.Module):
    """drop(act(GroupNorm(x + add) * (1 + scale) + shift)), one fused op; x [B, C, *]; add, scale, shift [B, C] or None.

    options: dropout, rng, sample_ids and layer of `fastdiff.ops.group_norm_silu`.
    """

    def __init__(self, channels, groups, eps=1e-6, silu=True):
        super().__init__()
        self.groups, self.eps, self.silu = groups, eps, silu
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, add=None, scale=None, shift=None, **options):
        return ops.group_norm_silu(
            x, self.groups, self.weight, self.bias, eps=self.eps, add=add, scale=scale, shift=shift, silu=self.silu,
            **options,
        )  # fmt: skip

    def extra_repr(self):
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}, silu={self.silu}"


class RMSNormSiLU(nn.Module):
    """drop(act(x / |x| * sqrt(C) * weight * (1 + scale) + shift)), |x| over the channels of a pixel; shapes as above.

    dropout is torch's, by torch's generator; rng, sample_ids and layer are taken, as of any norm, and unused.
    """

    def __init__(self, channels, silu=True):
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x, scale=None, shift=None, dropout=0.0, rng=None, sample_ids=None, layer=0):
        y = ops.rms_norm_silu(x, self.weight, scale=scale, shift=shift, silu=self.silu)
        return F.dropout(y, dropout) if dropout else y

    def extra_repr(self):
        return f"{len(self.weight)}, silu={self.silu}"


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight, mean and var over the channels of a pixel; x [B, C, *].

    The eps is 1e-3 in half precision. Source: lucidrains, denoising-diffusion-pytorch 0.28 to 1.6.
    """

    def __init__(self, channels, eps=1e-5, silu=False):
        super().__init__()
        self.eps, self.silu = eps, silu
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        eps = self.eps if x.dtype in (torch.float32, torch.float64) else 1e-3
        y = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, eps=eps).movedim(-1, 1)
        return F.silu(y) if self.silu else y


def maker(config, kind):
    """norm(channels, silu=True) of that kind, "group", "rms" or, of attention, "layer"."""
    if kind == "rms":
        return RMSNormSiLU
    if kind == "layer":
        return functools.partial(LayerNorm, eps=config.norm_eps)
    return functools.partial(GroupNormSiLU, groups=config.groups, eps=config.norm_eps)
