"""DPM-Solver++: multistep solvers exponential in half the log-SNR, of an equation in x0, with or without noise."""

import math

from ..processes.nodes import nodes_of
from .forms import NOISE, X0, H, Rows, X


def dpmpp_2m(process, timesteps=None, *, clip=1.0, solver_type="midpoint", lower_order_final=False):
    """x' = sigma'/sigma * x - alpha' * (exp(-h) - 1) * (x0 + (x0 - x0_before) / (2 r)), h = lambda' - lambda.

    lambda = log(alpha / sigma), r = h_before / h; the first step and one to clean data are of order 1.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        solver_type: "midpoint", as above, or "heun": the difference times (exp(-h) - 1) / h + 1, not (1 - exp(-h)) / 2.
        lower_order_final: the last step is of order 1 wherever it ends (diffusers does so below 15 steps).

    Source: Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022,
    algorithm 2.
    """
    return _multistep(process, timesteps, clip, 2, solver_type, lower_order_final)


def dpmpp_3m(process, timesteps=None, *, clip=1.0, solver_type="midpoint", lower_order_final=False):
    """`dpmpp_2m` with the second difference of x0 as well; `solver_type` is that of its second step.

    lower_order_final: the last steps are of order 2 and 1. Source: Lu et al. 2022, appendix B; diffusers.
    """
    return _multistep(process, timesteps, clip, 3, solver_type, lower_order_final)


def dpmpp_2m_sde(
    process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, solver_type="midpoint", lower_order_final=False
):
    """x' = sigma'/sigma * exp(-eta h) * x + alpha' * (1 - exp(-h - eta h)) * (x0 + ...) + std * noise.

    The difference is that of `dpmpp_2m` with (1 + eta) * h for h in its weight;
    std = s_noise * sigma' * sqrt(1 - exp(-2 eta h)). Other arguments as for `dpmpp_2m`. Source: Lu et al. 2022,
    section 5; k-diffusion; eta = 1 is diffusers' sde-dpmsolver++.
    """
    return _multistep(process, timesteps, clip, 2, solver_type, lower_order_final, eta, s_noise)


def dpmpp_3m_sde(
    process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, solver_type="heun", lower_order_final=False
):
    """`dpmpp_2m_sde` with the second difference of x0 as well; `solver_type` is that of its second step.

    Source: k-diffusion; with solver_type="midpoint" diffusers' sde-dpmsolver++ of order 3.
    """
    return _multistep(process, timesteps, clip, 3, solver_type, lower_order_final, eta, s_noise)


def _multistep(process, timesteps, clip, order, solver_type, lower_order_final, eta=0.0, s_noise=1.0):
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be midpoint or heun, got {solver_type!r}")
    nodes, rows = nodes_of(process, timesteps), Rows(clip)
    points, S = nodes.points(), len(nodes.time)
    for i, (at, to) in enumerate(nodes.steps()):
        left = 1 if to.sigma == 0 else S - i if lower_order_final else order
        steps = [points[j + 1].half_logsnr - points[j].half_logsnr for j in range(i, max(i - order, -1), -1)]
        drawn = eta * steps[0] if eta else 0.0
        result = to.sigma / at.sigma * math.exp(-drawn) * X - to.alpha * math.expm1(-steps[0] - drawn) * X0
        older = [H[(i - 1) % 3], H[(i - 2) % 3]]
        result += to.alpha * _differences(min(order, i + 1, left), steps, steps[0] + drawn, older, solver_type)
        rows.add(at, result + s_noise * to.sigma * math.sqrt(-math.expm1(-2 * drawn)) * NOISE, keep=X0, slot=i % 3)
    return rows.plan(nodes.start)


def _differences(order, steps, h, older, solver_type):
    """What the divided differences of x0 add to x' / alpha'; steps are the last intervals of lambda, newest first."""
    if order == 1:
        return X0 - X0
    first, phi_2 = (X0 - older[0]) / (steps[1] / steps[0]), math.expm1(-h) / h + 1
    if order == 2:
        return (phi_2 if solver_type == "heun" else -math.expm1(-h) / 2) * first
    r_0, r_1 = steps[1] / steps[0], steps[2] / steps[0]
    second = first - (older[0] - older[1]) / r_1
    return phi_2 * (first + r_0 / (r_0 + r_1) * second) - (phi_2 / h - 0.5) / (r_0 + r_1) * second
