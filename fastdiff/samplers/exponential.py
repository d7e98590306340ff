"""Exponential integrators in half the log-SNR, lambda = log(alpha / sigma): exact but for how x0, or eps, varies."""

import math

from ..processes.nodes import nodes_of
from .checks import check_amounts, check_choices
from .forms import NOISE, X0, ZERO, H, Rows, X, eps


def scales(at, to, predict):
    """(scale, outer, g) of x' = scale * x - outer * (expm1(g) * d_0 + what is due to differences of d).

    d is x0, with scale = sigma'/sigma, outer = alpha', g = -h; or eps, with alpha'/alpha, sigma', h, of
    h = lambda' - lambda.
    """
    h = to.half_logsnr - at.half_logsnr
    return (to.sigma / at.sigma, to.alpha, -h) if predict == "x0" else (to.alpha / at.alpha, to.sigma, h)


def estimate(point, predict):
    """x0 or eps at a point."""
    return X0 if predict == "x0" else eps(point)


# Of the second divided difference, from phi_3 = (phi_2 - g / 2) / g. The expansion has 2! * phi_3; the authors' code,
# and all after it, phi_3, which leaves order 2; and diffusers with noise phi_3 + 1, a sign being wrong, which leaves 1.
WEIGHTS = {"published": lambda phi_3: phi_3, "exact": lambda phi_3: 2 * phi_3, "diffusers": lambda phi_3: phi_3 + 1}


def multistep(
    process, timesteps, clip, order, solver_type, lower_order_final, *,
    predict="x0", eta=0.0, s_noise=1.0, weights="published",
):  # fmt: skip
    """DPM-Solver and DPM-Solver++ of order 1 to 3; eta: how much noise is drawn anew.

    The noise of x0 shortens what is left of x by exp(-eta h) and stretches g; that of eps moves 1 + eta times as far.
    lower_order_final: the last steps are of order 2 and 1; "euler": the last one of order 1.
    """
    check_choices(order=(order, (1, 2, 3)), solver_type=(solver_type, ("midpoint", "heun")), weights=(weights, WEIGHTS))
    check_amounts(eta=eta, s_noise=s_noise)
    nodes, rows = nodes_of(process, timesteps, signal=predict == "eps"), Rows(clip)
    points, S = nodes.points(), len(nodes.time)
    for i, (at, to) in enumerate(nodes.steps()):
        if to.sigma == 0:
            rows.add(at, to.alpha * X0)
            continue
        if to.noise_level == at.noise_level:  # h = 0
            rows.add(at, X)
            continue
        left = (1 if i + 1 == S else order) if lower_order_final == "euler" else S - i if lower_order_final else order
        steps = [points[j + 1].half_logsnr - points[j].half_logsnr for j in range(i, max(i - order, -1), -1)]
        scale, outer, g, std = _noisy(*scales(at, to, predict), eta, predict)
        values = [estimate(at, predict), H[(i - 1) % 3], H[(i - 2) % 3]]
        change = math.expm1(g) * values[0] + _differences(
            min(order, i + 1, left), steps, g, values, solver_type, weights
        )
        result = scale * X - outer * change + s_noise * to.sigma * std * NOISE
        rows.add(at, result, keep=values[0], slot=i % 3)
    return rows.plan(nodes.start)


def _noisy(scale, outer, g, eta, predict):
    """(scale, outer, g, deviation of the noise in units of sigma') where noise is drawn anew."""
    if predict == "eps":
        return scale, (1 + eta) * outer, g, math.sqrt(eta * math.expm1(2 * g)) if eta else 0.0
    drawn = eta * -g if eta else 0.0
    return scale * math.exp(-drawn), outer, g - drawn, math.sqrt(-math.expm1(-2 * drawn))


def _differences(order, steps, g, values, solver_type, weights):
    """What divided differences of the values add to expm1(g) * d_0; steps: last intervals of lambda, newest first."""
    if order == 1:
        return ZERO
    r_0 = steps[1] / steps[0]
    first, phi_2 = (values[0] - values[1]) / r_0, math.expm1(g) / g - 1
    if order == 2:
        return (phi_2 if solver_type == "heun" else math.expm1(g) / 2) * first
    r_1 = steps[2] / steps[0]
    second = (first - (values[1] - values[2]) / r_1) / (r_0 + r_1)
    return phi_2 * (first + r_0 * second) + WEIGHTS[weights](phi_2 / g - 0.5) * second
