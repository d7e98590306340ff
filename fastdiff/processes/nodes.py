"""The points that a run visits: the form in which every solver sees every process."""

import itertools
import math
from typing import NamedTuple

import torch


class Point(NamedTuple):
    """One point of a run in Python numbers. time, p_x, p_m and c_in are None where no network is asked: at its end."""

    alpha: float
    sigma: float
    time: int | float | None = None
    p_x: float | None = None
    p_m: float | None = None
    c_in: float | None = None

    @property
    def noise_level(self):
        """sigma / alpha; inf where there is no signal."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_logsnr(self):
        """lambda = log(alpha / sigma); inf at clean data, -inf where there is no signal."""
        return -math.log(self.noise_level) if self.sigma else math.inf


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

    @property
    def start(self):
        """What unit noise is scaled by at the first point: its sigma in variance-exploding views, else 1."""
        return self.sigma[0].item() if self.alpha[0] == 1 else 1.0

    def points(self):
        """The S + 1 points, the last one without a network."""
        fed = zip(*(column.tolist() for column in (self.time, self.p_x, self.p_m, self.c_in)), strict=True)
        scales = list(zip(self.alpha.tolist(), self.sigma.tolist(), strict=True))
        return [Point(*at, *network) for at, network in zip(scales, [*fed, ()], strict=True)]

    def steps(self):
        """The S pairs of points (from, to)."""
        points = self.points()
        return list(itertools.pairwise(points))


def nodes_of(process, timesteps, *, signal=False):
    """process.nodes(timesteps), or `timesteps` itself where it is Nodes already.

    signal: ValueError where alpha is 0 at a point, for solvers that divide by it.
    """
    nodes = timesteps if isinstance(timesteps, Nodes) else process.nodes(timesteps)
    if signal and not (nodes.alpha > 0).all():
        rule = "alpha above 0 at every timestep for this solver (at zero terminal SNR see ddim, ddpm, dpmpp_2m)"
        raise ValueError(f"process must have {rule}, got 0 at {nodes.time[0].item()}")
    return nodes


def point_at(process, noise_level):
    """The point of this noise level, off the grid: by process.through(levels), or time_at(level) in continuous time."""
    levels = torch.tensor([noise_level, 0.0], dtype=torch.float64, device="cpu")
    if hasattr(process, "through"):
        return process.through(levels).points()[0]
    if hasattr(process, "time_at"):
        return process.nodes(process.time_at(levels[:1])).points()[0]
    raise TypeError(f"process must have a method through or time_at for this solver, got {process!r}")


def checked_levels(name, levels):
    """Noise levels float64 [S + 1] that fall strictly, above 0 but for the last."""
    try:
        levels = torch.as_tensor(levels, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, got {type(levels).__name__}") from error
    if levels.dim() != 1 or len(levels) < 2:
        raise ValueError(f"{name} must be [S + 1] noise levels with S at least 1, got shape {list(levels.shape)}")
    if not levels.isfinite().all() or (levels.diff() >= 0).any() or levels[-1] < 0:
        raise ValueError(f"{name} must be finite, fall strictly and end at or above 0, got {levels.tolist()}")
    return levels
