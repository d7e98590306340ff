"""Plans written with the score, score = (alpha * x0 - x) / sigma^2 of a row's estimate x0."""

import torch

from .plan import Plan


def score_row(nodes, keep, gain, std, *, clip):
    """The columns of x' = keep * x + gain * score + std * z, [S] each; keep, gain, std likewise.

    Without a clip the score is that of the raw output: alpha * x0 - x cancels where sigma is small.
    """
    alpha, sigma = nodes.alpha[:-1], nodes.sigma[:-1]
    if clip is not None:
        return {"c_x": keep - gain / sigma**2, "c_0": gain * alpha / sigma**2, "c_m": 0 * gain, "std": std}
    of_x, of_m = (alpha * nodes.p_x - 1) / sigma**2, alpha * nodes.p_m / sigma**2
    return {"c_x": keep + gain * of_x, "c_0": 0 * gain, "c_m": gain * of_m, "std": std}


def score_plan(nodes, rows, *, clip, denoise, **options):
    """A Plan that runs each of `rows`, columns [S] by name, at the first node, then each at the second, and so on.

    x_T is noise of deviation 1, or sigma where alpha is 1 there. With `denoise` the last row adds no noise. Options are
    those of Plan.
    """
    repeats = len(rows)
    columns = {name: torch.stack([row[name] for row in rows], dim=1).flatten() for name in rows[0]}
    if denoise:
        columns["std"][-1] = 0
    return Plan(
        nodes.time.repeat_interleave(repeats),
        p_x=nodes.p_x.repeat_interleave(repeats),
        p_m=nodes.p_m.repeat_interleave(repeats),
        c_in=nodes.c_in.repeat_interleave(repeats),
        bound=float("inf") if clip is None else clip,
        start=nodes.start,
        **columns,
        **options,
    )


def then_estimate(plan):
    """The same plan and one more row, at its last time: x' = x0."""
    ends = {name: plan[name][-1] for name in ("p_x", "p_m", "c_in", "bound")} | {"c_0": 1.0}
    ends |= dict.fromkeys(("c_x", "c_m", "std"), 0.0)
    columns = {name: torch.cat([plan[name], plan[name].new_tensor([end])]) for name, end in ends.items()}
    return Plan(torch.cat([plan.time, plan.time[-1:]]), start=plan.start, **columns)


def preserving(nodes):
    """alpha^2 + sigma^2 = 1 at every node (VP)."""
    return torch.allclose(nodes.alpha**2 + nodes.sigma**2, torch.ones_like(nodes.alpha), rtol=0, atol=1e-6)


def exploding(nodes):
    """alpha = 1 at every node (VE)."""
    return bool((nodes.alpha == 1).all())
