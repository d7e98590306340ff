"""Bounds of x0 that follow its own values."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DynamicThreshold:
    """x0 = clip(x0, -s, s) / s,  s = the quantile of |x0| over a sample's elements, limited to [1, maximum].

    Given to `fastdiff.Sampler` as `clip`. Between two elements the quantile is interpolated linearly.

    Args:
        quantile: in (0, 1].
        maximum: of s, at least 1; 1 is the static clip to [-1, 1].

    Source: Saharia et al., "Photorealistic text-to-image diffusion models with deep language understanding", 2022,
    section 2.3.
    """

    quantile: float = 0.995
    maximum: float = math.inf

    def __post_init__(self):
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {self.quantile!r}")
        if not self.maximum >= 1:
            raise ValueError(f"maximum must be at least 1, got {self.maximum!r}")

    def __call__(self, x0):
        """(bound, shrink) = (s, 1 / s), float32 [B], of estimates x0 [B, C, *] that are not clipped."""
        sizes = x0.abs().flatten(1)
        place = self.quantile * (sizes.shape[1] - 1)
        below = math.floor(place)
        largest = sizes.topk(sizes.shape[1] - below, dim=1).values  # falling: the last is element `below`
        s = largest[:, -1]
        if place > below:
            s = torch.lerp(s, largest[:, -2], place - below)
        s = s.clamp(1, self.maximum)
        return s, 1 / s
