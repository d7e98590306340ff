"""Normalisation with its activation and the time embedding's scale, shift or add: one op each."""

import functools

import torch
from torch import nn

from .. import ops


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


class RMSNormSiLU(nn.Module):
    """act(x / |x| * sqrt(C) * weight * (1 + scale) + shift), |x| over the channels of a pixel; shapes as above."""

    def __init__(self, channels, silu=True):
        super().__init__()
        self.silu = silu
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x, scale=None, shift=None):
        return ops.rms_norm_silu(x, self.weight, scale=scale, shift=shift, silu=self.silu)

    def extra_repr(self):
        return f"{len(self.weight)}, silu={self.silu}"


def maker(config, kind):
    """norm(channels, silu=True) of that kind, "group" or "rms"."""
    if kind == "rms":
        return RMSNormSiLU
    return functools.partial(GroupNormSiLU, groups=config.groups, eps=config.norm_eps)
