"""The network of the experiments: small images in seconds, where a U-Net would take minutes."""

import torch
from torch import nn

from fastdiff.models.layers import sinusoidal_embedding


class MLP(nn.Module):
    """x + time through three residual blocks of two linear layers each: [B, C, H, W], t [B] -> [B, out, H, W].

    `scale` multiplies what the network is told of t, so that all processes' times span about 0..1000.
    """

    def __init__(self, sample_shape, out_channels, width=256, depth=3, scale=1.0):
        super().__init__()
        self.sample_shape, self.out_channels, self.scale = tuple(sample_shape), out_channels, scale
        C, H, W = sample_shape
        self.inside, self.outside = nn.Linear(C * H * W, width), nn.Linear(width, out_channels * H * W)
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        nn.init.zeros_(self.outside.weight)
        nn.init.zeros_(self.outside.bias)

    def forward(self, x, t):
        h, time = self.inside(x.flatten(1)), self.time(sinusoidal_embedding(t.float() * self.scale, 128))
        for block in self.blocks:
            h = h + block(h + time)
        return self.outside(h).view(len(x), self.out_channels, *self.sample_shape[1:])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def seeded(seed, *arguments, **options):
    """The network whose first weights are a function of the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return MLP(*arguments, **options)
