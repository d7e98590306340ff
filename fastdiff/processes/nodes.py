"""The points that a run visits: the form in which every solver sees every process."""

from typing import NamedTuple

import torch


class Nodes(NamedTuple):
    """S steps between S + 1 points of x = alpha * x_0 + sigma * eps, the noisiest first; all float64 on the CPU.

    A step i goes from point i to point i + 1. Its network is fed (c_in[i] * x, time[i]) and returns m, of which
    x0 = p_x[i] * x + p_m[i] * m. Variance-exploding views have alpha = 1.
    """

    time: torch.Tensor  # [S], int64 where the network's dialect is integer timesteps
    alpha: torch.Tensor  # [S + 1], the last of them where the run ends: 1 for clean data
    sigma: torch.Tensor  # [S + 1], the last of them 0 for clean data
    p_x: torch.Tensor  # [S]
    p_m: torch.Tensor  # [S]
    c_in: torch.Tensor  # [S]

    @property
    def noise_level(self):
        """sigma / alpha, [S + 1]."""
        return self.sigma / self.alpha

    @property
    def logsnr(self):
        """log(alpha^2 / sigma^2), [S + 1]: inf at clean data."""
        return 2 * (self.alpha.log() - self.sigma.log())
