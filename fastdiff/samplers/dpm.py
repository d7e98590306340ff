"""DPM-Solver: exponential integrators of the equation in eps; of several steps, or of several stages on the grid."""

import itertools
import math

from ..processes.nodes import nodes_of
from .checks import check_choices
from .exponential import estimate, multistep, scales
from .forms import X0, H, Rows, X


def dpm_multistep(
    process, timesteps=None, *, clip=1.0, order=2, solver_type="midpoint", lower_order_final=False,
    weights="published", eta=0.0, s_noise=1.0,
):  # fmt: skip
    """x' = alpha'/alpha * x - sigma' * expm1(h) * (eps + (eps - eps_before) / (2 r)), h = lambda' - lambda.

    `dpmpp_2m` and `dpmpp_3m` (order 3) of the noise, lambda = log(alpha / sigma), r = h_before / h.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None; eps follows from the clipped x0.
        order: 1, 2 or 3. solver_type, lower_order_final, weights: as for `dpmpp_3m`.
        eta: share of noise that is drawn anew: what eps adds is multiplied by 1 + eta, and noise of deviation
            s_noise * sigma' * sqrt(eta * expm1(2 h)) comes with it; 1 is diffusers' sde-dpmsolver.

    Source: Lu et al., "DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps",
    2022; the multistep form is diffusers'.
    """
    options = {"predict": "eps", "weights": weights, "eta": eta, "s_noise": s_noise}
    return multistep(process, timesteps, clip, order, solver_type, lower_order_final, **options)


def dpm_singlestep(
    process, timesteps=None, *, clip=1.0, order=3, predict="eps", solver_type="midpoint", lower_order_final=True
):
    """Blocks of `order` steps of the grid; the k-th of a block starts again from the block's first x, with order k.

    With r_j the places in lambda of the block's points in the interval covered, and d_j the estimates there:

        order 1   x' = scale * x - outer * expm1(g) * d_0
        order 2   ... and expm1(g) / 2 * (d_1 - d_0) / r_1 beside expm1(g) * d_0; "heun": expm1(g) / g - 1 for the half
        order 3   ... and (expm1(g) / g - 1) * (d_2 - d_0) / r_2; "heun": with the second difference

    scale = alpha'/alpha, outer = sigma', g = h for eps; sigma'/sigma, alpha', -h for x0; h = lambda' - lambda.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        order: 1, 2 or 3.
        predict: "eps": DPM-Solver, "x0": DPM-Solver++.
        solver_type: "midpoint" or "heun", as above.
        lower_order_final: shorter blocks at the end, the last of one step where the others allow it.

    A step to clean data is of order 1. Source: Lu et al., "DPM-Solver", 2022, algorithms 1 and 2; the grid's points for
    stages and the blocks are diffusers'.
    """
    check_choices(order=(order, (1, 2, 3)), predict=(predict, ("eps", "x0")))
    check_choices(solver_type=(solver_type, ("midpoint", "heun")))
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    points, first = nodes.points(), 0
    for size in _blocks(len(nodes.time), order, lower_order_final, points[-1].sigma == 0):
        _block(rows, points[first : first + size + 1], predict, solver_type)
        first += size
    return rows.plan(nodes.start)


def _blocks(S, order, lower_order_final, to_data):
    """The sizes of the blocks."""
    if lower_order_final and order > 1 and S % order == 0:
        sizes = [order] * (S // order - 1) + [order - 1, 1]
    else:
        sizes = [order] * (S // order) + [S % order] * (S % order > 0)
    if to_data and sizes[-1] > 1:
        sizes[-1:] = [sizes[-1] - 1, 1]
    return sizes


def _block(rows, points, predict, solver_type):
    """The steps of one block. History: its x, its first estimate and its second, x kept by a row of its own."""
    start, values = points[0], []
    if len(points) > 2:
        rows.add(start, X, keep=X, slot=0, call=False)
    for k, (at, to) in enumerate(itertools.pairwise(points)):
        now, x = estimate(at, predict), H[0] if k else X
        if to.sigma == 0:
            rows.add(at, to.alpha * X0)
            return
        scale, outer, g = scales(start, to, predict)
        places = [(p.half_logsnr - start.half_logsnr) / (to.half_logsnr - start.half_logsnr) for p in points[1 : k + 1]]
        change = _change(g, places, [*values, now], solver_type)
        rows.add(at, scale * x - outer * change, keep=now, slot=k + 1 if k < 2 else -1)
        values.append(H[k + 1] if k < 2 else now)


def _change(g, places, values, solver_type):
    """expm1(g) * d_0 and its differences; values: d_0, d_1, d_2, at 0 and at these places of the interval."""
    phi_2, slopes = math.expm1(g) / g - 1, [(d - values[0]) / r for r, d in zip(places, values[1:], strict=True)]
    change = math.expm1(g) * values[0]
    if len(slopes) == 1:
        return change + (phi_2 if solver_type == "heun" else math.expm1(g) / 2) * slopes[0]
    if len(slopes) == 2 and solver_type == "midpoint":
        return change + phi_2 * slopes[1]
    if len(slopes) == 2:
        r_1, r_2 = places
        second = (slopes[1] - slopes[0]) / (r_2 - r_1)
        return change + phi_2 * (slopes[0] - r_1 * second) + 2 * (phi_2 / g - 0.5) * second
    return change
