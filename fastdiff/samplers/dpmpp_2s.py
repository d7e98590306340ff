"""DPM-Solver++ of two stages: deterministic, ancestral, and of the stochastic equation."""

import math

from ..processes.nodes import nodes_of, point_at
from .checks import check_amounts
from .euler import ancestral
from .forms import NOISE, X0, H, Rows, X


def dpmpp_2s(process, timesteps=None, *, clip=1.0, r=0.5):
    """`dpmpp_2s_ancestral` with eta = 0: Lu et al. 2022, "DPM-Solver++", algorithm 1."""
    return dpmpp_2s_ancestral(process, timesteps, clip=clip, eta=0.0, r=r)


def dpmpp_2s_ancestral(process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, r=0.5):
    """x' = sigma_down/sigma * x + (1 - exp(-h)) * ((1 - 1/(2r)) * x0 + 1/(2r) * x0_mid) + s_noise * sigma_up * noise.

    In the variance-exploding view, with h = log(sigma / sigma_down) and x0_mid the estimate at
    sigma_mid = sigma * exp(-r h), reached from x by one step of order 1. Two rows a step, one to sigma_down = 0.
    sigma_down and sigma_up are those of `euler_ancestral`.

    Args:
        process, timesteps: a process with `through` and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        r: where the middle lies, in (0, 1].

    Source: Lu et al., "DPM-Solver++", 2022, algorithm 1; k-diffusion for the noise.
    """
    _check(eta, s_noise, r)
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    for at, to in nodes.steps():
        down, up = ancestral(at.noise_level, to.noise_level, eta)
        noise = s_noise * up * NOISE
        if down == 0:
            rows.add(at, to.alpha * (X0 + noise))
            continue
        mid = point_at(process, at.noise_level ** (1 - r) * down**r)
        base, weight = _first_order(at, down), 1 - down / at.noise_level
        rows.add(at, mid.alpha * _first_order(at, mid.noise_level), keep=base - weight / (2 * r) * X0, slot=0)
        rows.add(mid, to.alpha * (H[0] + weight / (2 * r) * X0 + noise))
    return rows.plan(nodes.start)


def dpmpp_sde(process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, r=0.5):
    """The two stages of `dpmpp_2s_ancestral`, each ancestral: noise enters the middle too.

    Both stages start from x, their intervals of sigma overlap, and so do their noises: that of the step is
    rho * (the middle's) + sqrt(1 - rho^2) * (a new one), rho^2 = (sigma - sigma_mid) / (sigma - sigma'), as of one
    Brownian path in sigma. The middle's noise is what its x differs by from its mean, which history holds.

    Arguments as for `dpmpp_2s_ancestral`. Source: k-diffusion, with its Brownian tree in closed form.
    """
    _check(eta, s_noise, r)
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    for at, to in nodes.steps():
        if to.sigma == 0:
            rows.add(at, to.alpha * X0)
            continue
        mid = point_at(process, at.noise_level ** (1 - r) * to.noise_level**r)
        down, up = ancestral(at.noise_level, mid.noise_level, eta)
        last, std = ancestral(at.noise_level, to.noise_level, eta)
        rho, fresh = _shared(at.noise_level, mid.noise_level, to.noise_level)
        middle, weight = _first_order(at, down), (1 - last / at.noise_level) / (2 * r)
        share = rho * std / up if up else 0.0  # x at the middle is its mean + s_noise * up * noise
        base = _first_order(at, last) - weight * X0 - share * middle
        rows.add(at, mid.alpha * (middle + s_noise * up * NOISE), keep=base, slot=0)
        rows.add(mid, to.alpha * (H[0] + weight * X0 + share / mid.alpha * X + s_noise * std * fresh * NOISE))
    return rows.plan(nodes.start)


def _check(eta, s_noise, r):
    check_amounts(eta=eta, s_noise=s_noise)
    if not 0 < r <= 1:
        raise ValueError(f"r must be in (0, 1], got {r!r}")


def _shared(level, middle, following):
    """(rho, sqrt(1 - rho^2)): how the Brownian increment over a step follows from that over its first part."""
    part = (level - middle) / (level - following)
    return math.sqrt(part), math.sqrt(1 - part)


def _first_order(at, level):
    """x / alpha after the step of order 1 to this noise level."""
    return level / at.noise_level * (X / at.alpha) + (1 - level / at.noise_level) * X0
