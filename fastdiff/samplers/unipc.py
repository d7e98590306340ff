"""The unified predictor-corrector."""

import math

import torch

from ..processes.nodes import nodes_of
from .checks import check_choices
from .exponential import estimate, scales
from .forms import X0, ZERO, H, Rows, X


def unipc(
    process, timesteps=None, *, clip=1.0, order=2, variant="bh2", predict="x0",
    corrector=True, uncorrected=(), lower_order_final=True,
):  # fmt: skip
    """x' = sigma'/sigma * x - alpha' * (expm1(-h) * d_0 + B(h) * sum_k rho_k * (d_k - d_0) / r_k), d_k older x0.

    h = lambda' - lambda, lambda = log(alpha / sigma), r_k = (lambda_k - lambda) / h; rho solves the order's conditions.
    The corrector repeats the last step with the new x0 among the d_k. It shares x's coefficient with the predictor, so
    that a corrected step and the next prediction are one row.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        order: 1, 2 or 3 of the predictor; the corrector adds one.
        variant: "bh1": B(h) = h; "bh2": B(h) = expm1(h).
        predict: "x0", or "eps": the same of the noise, with alpha'/alpha * x, sigma' * expm1(h).
        corrector: whether there is one; uncorrected: the steps, from 0, whose results it leaves alone.
        lower_order_final: the last steps are of order 2 and 1. The step to clean data is of order 1 always.

    Source: Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", 2023,
    algorithms 1 to 4; order 2's predictor and order 1's corrector take rho = 1/2, as in its code.
    """
    check_choices(order=(order, (1, 2, 3)), variant=(variant, tuple(_B)), predict=(predict, ("x0", "eps")))
    nodes, rows = nodes_of(process, timesteps, signal=True), Rows(clip)
    points, S, before = nodes.points(), len(nodes.time), 1
    for i, (at, to) in enumerate(nodes.steps()):
        if to.sigma == 0:
            rows.add(at, to.alpha * X0)
            continue
        now = estimate(at, predict)
        older = [H[(i - 1) % 3], H[(i - 2) % 3], H[(i - 3) % 3]]
        x = X
        if corrector and i > 0 and i - 1 not in uncorrected:
            last = points[i - 1 :: -1], at, older, before, variant, predict
            x += _step(*last, now) - _step(*last)
        left = S - i if lower_order_final else order
        before = min(order, i + 1, left)
        result = scales(at, to, predict)[0] * x + _step(points[i::-1], to, [now, *older], before, variant, predict)
        rows.add(at, result, keep=now, slot=i % 3)
    return rows.plan(nodes.start)


_B = {"bh1": lambda h: h, "bh2": math.expm1}


def _step(past, to, values, order, variant, predict, now=None):
    """What x' = scale * x + ... adds, from past[0] to `to`: a prediction, or with the value `now` there a correction.

    past: points, newest first; values: x0 (or eps) there.
    """
    _, outer, h = scales(past[0], to, predict)
    result = -outer * math.expm1(h) * values[0]
    if order == 1 and now is None:
        return result
    ratios = [_ratio(past[k], past[0], to) for k in range(1, order)]
    slopes = [(values[k] - values[0]) / ratio for k, ratio in enumerate(ratios, 1)]
    if now is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, now - values[0]]
    B = _B[variant](h)
    differences = (rho * slope for rho, slope in zip(_weights(ratios, h, B), slopes, strict=True))
    return result - outer * B * sum(differences, ZERO)


def _ratio(point, origin, to):
    """(lambda_point - lambda_origin) / (lambda_to - lambda_origin)."""
    return (point.half_logsnr - origin.half_logsnr) / (to.half_logsnr - origin.half_logsnr)


def _weights(ratios, h, B):
    """rho of sum_k rho_k r_k^(n-1) = n! h phi_{n+1}(h) / B, n = 1..len(ratios)."""
    if len(ratios) == 1:
        return [0.5]
    phi, factorial, targets = math.expm1(h) / h - 1, 1, []
    for n in range(1, len(ratios) + 1):
        targets.append(phi * factorial / B)
        factorial *= n + 1
        phi = phi / h - 1 / factorial
    targets = torch.tensor(targets, dtype=torch.float64, device="cpu")
    powers = targets.new_tensor([[ratio**n for ratio in ratios] for n in range(len(ratios))])
    return torch.linalg.solve(powers, targets).tolist()
