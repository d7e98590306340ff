"""Linear multistep in the variance-exploding view."""

import math

from ..processes.nodes import nodes_of
from .checks import check_choices
from .forms import H, Rows, X, eps


def lms(process, timesteps=None, *, clip=1.0, order=4):
    """x' = x + sum_k w_k * eps_k, w_k the integral from sigma to sigma' of the k-th Lagrange polynomial.

    The polynomials interpolate eps at this and the last order - 1 points, fewer at first. History holds eps.

    Args:
        process, timesteps, clip: as for `euler`.
        order: 1 to 4, the number of points.

    Source: k-diffusion; the Adams-Bashforth methods for uneven steps.
    """
    check_choices(order=(order, (1, 2, 3, 4)))
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    levels = nodes.noise_level.tolist()
    for i, (at, to) in enumerate(nodes.steps()):
        known = levels[max(0, i + 1 - order) : i + 1][::-1]  # newest first
        result = X / at.alpha
        for k in range(len(known)):
            result += _integral(known, k, at.noise_level, to.noise_level) * (eps(at) if k == 0 else H[(i - k) % 3])
        rows.add(at, to.alpha * result, keep=eps(at), slot=i % 3)
    return rows.plan(nodes.start)


def _integral(nodes, k, start, stop):
    """Of the k-th Lagrange polynomial of these nodes; by the two-point Gauss rule, exact up to the third degree."""
    middle, half = (start + stop) / 2, (stop - start) / 2
    places = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    others = [node for j, node in enumerate(nodes) if j != k]
    return half * sum(math.prod((place - node) / (nodes[k] - node) for node in others) for place in places)


# Adams-Bashforth weights of even steps, newest first.
_EVEN = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(process, timesteps=None, *, clip=1.0, order=4):
    """x' = x + (sigma' - sigma) * sum_k w_k * eps_k, w the Adams-Bashforth weights of even steps.

    In the variance-exploding view, as `lms`, but the weights do not know how far apart the points are: 1; 3/2, -1/2;
    23/12, -16/12, 5/12; 55/24, -59/24, 37/24, -9/24. So where steps are uneven the order is 2 at most. The first steps
    have fewer. Arguments as for `lms`.

    Source: Liu et al., "Pseudo numerical methods for diffusion models on manifolds", 2022, equation 12; diffusers.
    """
    check_choices(order=(order, (1, 2, 3, 4)))
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    for i, (at, to) in enumerate(nodes.steps()):
        weights = _EVEN[min(i + 1, order) - 1]
        slope = weights[0] * eps(at)
        for k, weight in enumerate(weights[1:], 1):
            slope += weight * H[(i - k) % 3]
        rows.add(at, to.alpha * (X / at.alpha + (to.noise_level - at.noise_level) * slope), keep=eps(at), slot=i % 3)
    return rows.plan(nodes.start)
