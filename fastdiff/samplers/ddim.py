"""Denoising diffusion implicit models: the deterministic step, its noisy kin and its inverse."""

import itertools
import math

from ..processes.nodes import Point, nodes_of
from .checks import check_amounts
from .forms import NOISE, X0, Rows, eps, raw_eps


def ddim(process, timesteps=None, *, clip=1.0, eta=0.0, clipped_eps=True):
    """x' = alpha' * x0 + sqrt(sigma'^2 - std^2) * eps + std * noise,  eps = (x - alpha * x0) / sigma.

    std = eta * sigma' * sqrt(1 - (alpha * sigma' / (alpha' * sigma))^2): eta = 0 is deterministic, eta = 1 the
    ancestral sampler of the posterior variance.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        clipped_eps: eps follows from the clipped x0, as OpenAI has it and diffusers with use_clipped_model_output;
            False: it is the network's own, as diffusers has it by default.

    Source: Song et al., "Denoising diffusion implicit models", 2021, equations 12 and 16.
    """
    check_amounts(most=1, eta=eta)
    nodes, rows = nodes_of(process, timesteps), Rows(clip)
    for at, to in nodes.steps():
        ratio = at.alpha * to.sigma / (to.alpha * at.sigma)
        fresh = eta * eta * (1 - ratio * ratio)  # share of the noise variance that is drawn anew
        noise = eps(at) if clipped_eps else raw_eps(at)
        kept, std = to.sigma * math.sqrt(1 - fresh), to.sigma * math.sqrt(fresh)
        rows.add(at, to.alpha * X0 + kept * noise + std * NOISE)
    return rows.plan(nodes.start)


def ddim_reverse(process, timesteps=None, *, clip=1.0, to_noise=False):
    """x' = alpha' * x0 + sigma' * eps from each point to the next noisier one: what `ddim` with eta = 0 undoes.

    Clean data is taken for the least noisy point; the noisiest is where the run ends, after one row less than points.

    Args:
        process, timesteps, clip: as for `ddim`.
        to_noise: one row more, from the noisiest point to alpha' = 0, sigma' = 1, as OpenAI has it; not in
            variance-exploding views.

    Source: Song et al., "Denoising diffusion implicit models", 2021, section 4.3 and equation 13.
    """
    *points, _ = nodes_of(process, timesteps).points()
    points.reverse()
    if to_noise and points[-1].alpha == 1:
        raise ValueError("to_noise must be False in a variance-exploding view, where signal never ends, got True")
    if to_noise:
        points.append(Point(0.0, 1.0))
    if len(points) < 2:
        raise ValueError(f"timesteps must be at least 2, to go from one to the next, got {len(points)}")
    rows = Rows(clip)
    for at, to in itertools.pairwise(points):
        rows.add(at, to.alpha * X0 + to.sigma * eps(at))
    return rows.plan()
