"""Langevin dynamics: step sizes that depend on the state, and NCSN's annealed chains."""

import math

import torch

from ..ops.rows import COLUMNS
from ..processes.nodes import nodes_of
from .score import exploding, score_plan, score_row, then_estimate


def annealed_langevin(process, timesteps=None, *, clip=None, steps_each=None, step_size=None, version=2, denoise=None):
    """steps_each times at every level: x' = x + a * score + sqrt(2 a) z,  a = step_size * sigma^2 / sigma_min^2.

    Version 1 (NCSN) halves a: x' = x + a / 2 * score + sqrt(a) z. With `denoise` one more row ends the run at the
    estimate x0 = x + sigma_min^2 * score. x_T is noise of deviation sigma_max (both papers start from uniform noise,
    which is forgotten at the first level).

    Args:
        process: `fastdiff.processes.NCSNProcess`, or any other with alpha = 1.
        timesteps: of the levels, those retained, or their number; None: all.
        clip: bound of x0's absolute value in the score, or None.
        steps_each: rows at each level; None: 5, or 100 in version 1.
        step_size: epsilon of the papers; None: `best_step_size` of the levels, or 2e-5 in version 1.
        version: 2 (NCSNv2) or 1 (NCSN).
        denoise: None: in version 2 only, as in the papers.

    Source: Song and Ermon 2019, algorithm 1; 2020, algorithm 1 and section 3.4.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    nodes = nodes_of(process, timesteps)
    if not exploding(nodes):
        raise ValueError(f"process must have alpha = 1 (NCSNProcess, VESDE), got {process!r}")
    steps_each = (100 if version == 1 else 5) if steps_each is None else steps_each
    if not isinstance(steps_each, int) or steps_each < 1:
        raise ValueError(f"steps_each must be an int of at least 1, got {steps_each!r}")
    sigma = nodes.sigma[:-1]
    if step_size is None:
        step_size = 2e-5 if version == 1 else best_step_size(sigma, steps_each)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive, got {step_size}")
    gain = step_size * (sigma / sigma[-1]) ** 2 / (2 if version == 1 else 1)
    row = score_row(nodes, torch.ones_like(gain), gain, (2 * gain).sqrt(), clip=clip)
    plan = score_plan(nodes, [row] * steps_each, clip=clip, denoise=False)
    return then_estimate(plan) if denoise or (denoise is None and version == 2) else plan


def best_step_size(sigma, steps_each):
    """The step size after which the deviation that a level hands on is nearest to its own sigma.

    With e = step_size / sigma_min^2 and g the ratio of neighbouring levels, steps_each = n steps turn a deviation of
    g sigma into s sigma, s^2 = (1 - e)^(2 n) (g^2 - 2 / (2 - e)) + 2 / (2 - e). sigma: [L], decreasing.
    Source: Song and Ermon 2020, proposition 3 and technique 4; 6.2e-6 for 232 levels from 50 to 0.01 and n = 5.
    """
    ratio = (sigma[:-1] / sigma[1:]).max() if len(sigma) > 1 else sigma.new_tensor(1.0)
    e = torch.logspace(-8, 0, 100_001, dtype=torch.float64, device="cpu")[:-1]
    rest = 2 / (2 - e)
    squared = (1 - e) ** (2 * steps_each) * (ratio**2 - rest) + rest
    return (e[(squared - 1).abs().argmin()] * sigma[-1] ** 2).item()


def langevin_by_sample(rows, row, x, model_output, noise):
    """A plan's `adjust`: step = (std ‖z‖ / ‖score‖)^2 / 2 of each sample, x' = x + step * score + sqrt(2 step) z.

    Such rows hold c_x, c_0 and c_m of the score itself, and in std what it is where the norms are equal. Norms are over
    all elements of a sample; the score is that of the clipped estimate. A sample does not depend on its batch.
    Source: Song et al. 2021, algorithms 4 and 5.
    """
    _scale(rows, x, model_output, noise, lambda norms: norms)


def langevin_by_batch(rows, row, x, model_output, noise):
    """As `langevin_by_sample`, with both norms averaged over the batch, as score_sde does."""
    _scale(rows, x, model_output, noise, lambda norms: norms.mean())


ADJUST = {"sample": langevin_by_sample, "batch": langevin_by_batch}


def _scale(rows, x, model_output, noise, average):
    def column(name):
        return rows[:, COLUMNS[name]].reshape(-1, *(1,) * (x.dim() - 1))

    B, C = x.shape[:2]
    m = model_output[:B, :C].to(rows.dtype)
    if len(model_output) == 2 * B:  # halves [uncond, cond]
        m = m + column("w") * (model_output[B:, :C].to(rows.dtype) - m)
    x, noise = x.to(rows.dtype), noise.to(rows.dtype)
    x0 = torch.clamp(column("p_x") * x + column("p_m") * m, -column("bound"), column("bound"))
    score = column("c_x") * x + column("c_0") * x0 + column("c_m") * m
    z, s = (average(value.flatten(1).norm(dim=1)) for value in (noise, score))
    std = rows[:, COLUMNS["std"]] * z / s
    step = std**2 / 2
    rows[:, COLUMNS["c_x"]] = 1 + step * rows[:, COLUMNS["c_x"]]
    rows[:, COLUMNS["c_0"]] *= step
    rows[:, COLUMNS["c_m"]] *= step
    rows[:, COLUMNS["std"]] = std
