"""Second-order solvers of two stages, in the variance-exploding view dx/dsigma = eps."""

import math

from ..processes.nodes import nodes_of, point_at
from .checks import check_amounts
from .euler import ancestral, churned
from .forms import NOISE, X0, H, Rows, X, eps


def heun(process, timesteps=None, *, clip=1.0, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """x' = x + (sigma' - sigma) * (eps + eps') / 2, eps' of x + (sigma' - sigma) * eps at sigma'; Euler to sigma' = 0.

    Two rows a step: the first keeps x + (sigma' - sigma) * eps / 2, the second adds its half.

    Args:
        process, timesteps, clip: as for `euler`.
        s_churn, s_tmin, s_tmax, s_noise: as for `euler`.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, algorithm 2.
    """
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    for at, to in churned(process, nodes, rows, s_churn, s_tmin, s_tmax, s_noise):
        if to.sigma == 0:
            rows.add(at, to.alpha * X0)
            continue
        half, base = to.alpha * (to.noise_level - at.noise_level) / 2, to.alpha * (X / at.alpha)
        rows.add(at, base + 2 * half * eps(at), keep=base + half * eps(at), slot=0)
        there = to if to.time is not None else point_at(process, to.noise_level)
        rows.add(there, H[0] + half * eps(there))
    return rows.plan(nodes.start)


def dpm_2(process, timesteps=None, *, clip=1.0, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """x' = x + (sigma' - sigma) * eps_mid, eps_mid of x + (sigma_mid - sigma) * eps, sigma_mid^2 = sigma * sigma'.

    Two rows a step; Euler to sigma' = 0. Arguments as for `heun`; the process must have `through`.
    Source: Karras et al. 2022, algorithm 2, with the midpoint of Lu et al., "DPM-Solver", 2022; k-diffusion.
    """
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    for at, to in churned(process, nodes, rows, s_churn, s_tmin, s_tmax, s_noise):
        _through_midpoint(process, rows, at, to, to.noise_level, 0.0)
    return rows.plan(nodes.start)


def dpm_2_ancestral(process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0):
    """`dpm_2` from sigma to sigma_down, then noise of deviation s_noise * sigma_up, as in `euler_ancestral`.

    process, timesteps, clip: as for `euler`; the process must have `through`. Source: k-diffusion.
    """
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    check_amounts(eta=eta, s_noise=s_noise)
    for at, to in nodes.steps():
        down, up = ancestral(at.noise_level, to.noise_level, eta)
        _through_midpoint(process, rows, at, to, down, s_noise * up)
    return rows.plan(nodes.start)


def _through_midpoint(process, rows, at, to, level, std):
    """Two rows from `at` to this noise level, then noise to `to`; one row to level 0."""
    if level == 0:
        rows.add(at, to.alpha * (X0 + std * NOISE))
        return
    mid = point_at(process, math.sqrt(at.noise_level * level))
    base = X / at.alpha
    rows.add(at, mid.alpha * (base + (mid.noise_level - at.noise_level) * eps(at)), keep=base, slot=0)
    rows.add(mid, to.alpha * (H[0] + (level - at.noise_level) * eps(mid) + std * NOISE))
