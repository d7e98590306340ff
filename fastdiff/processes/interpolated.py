"""A discrete variance-preserving process in continuous time, so that what was made for SDEs runs its networks."""

import math

import torch

from .continuous import ContinuousProcess, precise


class InterpolatedProcess(ContinuousProcess):
    """dx = -sigma^2 x du + sqrt(2) sigma dw,  u = ln(sigma / alpha),  alpha^2 = 1 / (1 + exp(2 u)) = 1 - sigma^2.

    u is its time, from that of the process' first timestep to that of its last. The network is fed the fractional
    timestep at which u, interpolated linearly between the integer ones, is met, as k-diffusion's
    DiscreteEpsDDPMDenoiser does: it must take float times, as networks with a sinusoidal embedding do.

    Args:
        process: `fastdiff.GaussianProcess` of prediction "eps", "score", "x0" or "v", with alpha above 0.

    Clean data lies at u = -inf. Attributes as for `ContinuousProcess`; prior_std = 1.
    Source of the interpolation: Karras et al., "Elucidating the design space of diffusion-based generative models",
    2022, appendix C.3.4, which rounds; of the flow: Song et al. 2021, equation 13.
    """

    t_end = -math.inf

    def __init__(self, process):
        if not hasattr(process, "alphas_cumprod") or not hasattr(process, "timestep_map"):
            raise TypeError(f"process must be a GaussianProcess, got {type(process).__name__}")
        if process.num_timesteps < 2 or not (process.alpha > 0).all():
            raise ValueError("process must have two timesteps or more and alpha above 0, got one without")
        self.levels, self.known_timesteps = process.noise_level.log(), process.timestep_map.double()
        self.num_timesteps = process.num_timesteps
        super().__init__(process.prediction, self.levels[0].item(), self.levels[-1].item())

    def __repr__(self):
        return f"{type(self).__name__}({self.num_timesteps} timesteps, prediction={self.prediction!r})"

    def alpha(self, t):
        return torch.sigmoid(-2 * precise(t)).sqrt()

    def sigma(self, t):
        return torch.sigmoid(2 * precise(t)).sqrt()

    def drift(self, t):
        return -torch.sigmoid(2 * precise(t))

    def diffusion(self, t):
        return math.sqrt(2) * self.sigma(t)

    def label(self, t):
        t = precise(t)
        levels, timesteps = (table.to(t.device, t.dtype) for table in (self.levels, self.known_timesteps))
        above = torch.searchsorted(levels, t.contiguous()).clamp(1, len(levels) - 1)
        below = above - 1
        part = ((t - levels[below]) / (levels[above] - levels[below])).clamp(0, 1)
        return torch.lerp(timesteps[below], timesteps[above], part)

    def time_at(self, noise_level):
        return precise(noise_level).log()


class LevelProcess(ContinuousProcess):
    """x = x_0 + sigma * eps, dx = sqrt(2) sigma dw in the time u = ln sigma, of a process known by its noise levels.

    Args:
        process: has sigma_min, sigma_max, and through(levels) -> `Nodes` of levels [S + 1] that fall to 0, with alpha
            = 1. It is asked on the CPU what the network is fed and what x0 is of its output, which synchronises.

    Clean data lies at u = -inf. Attributes as for `ContinuousProcess`; process; prior_std = sigma_max.
    """

    t_end = -math.inf

    def __init__(self, process):
        self.process, self.prior_std = process, float(process.sigma_max)
        self.prediction, self.t_min, self.t_max = None, math.log(process.sigma_min), math.log(process.sigma_max)

    def __repr__(self):
        return f"{type(self).__name__}({self.process!r})"

    def alpha(self, t):
        return torch.ones_like(precise(t))

    def sigma(self, t):
        return precise(t).exp()

    def drift(self, t):
        return torch.zeros_like(precise(t))

    def diffusion(self, t):
        return math.sqrt(2) * self.sigma(t)

    def time_at(self, noise_level):
        return precise(noise_level).log()

    def label(self, t):
        return self._at(t, "time")

    def c_in(self, t):
        return self._at(t, "c_in")

    def to_x0(self, t):
        return self._at(t, "p_x"), self._at(t, "p_m")

    def to_eps(self, t):
        p_x, p_m = self.to_x0(t)
        return (1 - p_x) / self.sigma(t), -p_m / self.sigma(t)

    def line(self, t):
        p_x, p_m = self.to_x0(t)
        return (1 - p_x) / p_m, -p_x * self.sigma(t) / p_m

    def _at(self, t, name):
        """A column of the process' nodes at times t of any shape and order."""
        t = precise(t)
        level, place = self.sigma(t).double().cpu().unique(return_inverse=True)
        nodes = self.process.through(torch.cat([level.flip(0), level.new_zeros(1)]))
        return getattr(nodes, name).flip(0)[place].to(t.device, t.dtype)


def continuous(process):
    """The process in continuous time: itself, or its `InterpolatedProcess`, or its `LevelProcess`."""
    if hasattr(process, "time_at"):
        return process
    if hasattr(process, "through") and hasattr(process, "sigma_max"):
        return LevelProcess(process)
    return InterpolatedProcess(process)
