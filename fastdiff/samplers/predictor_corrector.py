"""Predictor-corrector samplers of score-based models."""

import torch

from ..processes.nodes import Nodes, nodes_of
from .langevin import ADJUST
from .predictors import PREDICTORS, transition
from .score import exploding, preserving, score_plan, score_row

CORRECTORS = ("langevin", "ald")
FLOWS = ("euler_maruyama", "reverse_diffusion")  # predictors that are also those of the probability flow


def predictor_corrector(
    process,
    timesteps=None,
    *,
    clip=None,
    predictor="reverse_diffusion",
    corrector="langevin",
    snr=0.16,
    corrector_steps=1,
    norms="sample",
    probability_flow=False,
    levels=None,
    denoise=True,
):
    """At every time corrector_steps times x' = x + step * score + sqrt(2 step) z, then one step of the predictor.

    The corrector's step is 2 (scale * snr * ‖z‖ / ‖score‖)^2 for "langevin", 2 (scale * snr * sigma)^2 for "ald"
    (annealed); scale^2 = alpha_t^2 / alpha_{t'}^2 is 1 for VE. The predictor: x' = keep * x + gain * score + std * z.

    Args:
        process: any with `nodes`; "euler_maruyama" and levels want `VPSDE`, `SubVPSDE` or `VESDE`.
        timesteps: see `process.nodes`.
        clip: bound of x0's absolute value in the score, or None.
        predictor: "euler_maruyama", "reverse_diffusion", "ancestral" (the posterior's noise), "ancestral_large" (the
            transition's), or None (see `fastdiff.samplers.predictors` for their formulas).
        corrector: "langevin", "ald" or None. Both want a process that preserves or explodes variance: for sub-VP they
            are undefined, in score_sde too.
        snr: r of the source, the ratio of signal to noise of the corrector's step.
        corrector_steps: rows of the corrector at each time.
        norms: "sample": of each sample; "batch": averaged over the batch, as score_sde does, so that a sample depends
            on its batch.
        probability_flow: half the score and no noise in the predictor (reverse_diffusion and euler_maruyama).
        levels: score_sde's discretisation, of a chain of that many steps; with as many timesteps the run is
            score_sde's. None: the exact transitions between the times.
        denoise: no noise in the last row.

    Returns a Plan of corrector_steps + 1 rows per time. Score_sde's defaults: VE takes "reverse_diffusion" and
    "langevin" with snr 0.16 (0.075 at 256 x 256), VP "ancestral_large" or "euler_maruyama" and None.
    Source: Song et al. 2021, algorithms 2 to 5 and appendix G.
    """
    _check(predictor, corrector, snr, corrector_steps, norms, probability_flow)
    nodes = nodes_of(process, timesteps)
    if levels is not None and isinstance(timesteps, Nodes):
        raise ValueError("timesteps must be times or their number where levels is given, got Nodes")
    rows, adjusted = [], []
    if corrector is not None:
        if not preserving(nodes) and not exploding(nodes):
            raise ValueError(f"corrector must be None where variance is not preserved and alpha not 1, got {process!r}")
        scale = transition(process, timesteps, nodes, levels).scale
        rows += [_corrector_row(corrector, nodes, scale * snr, clip)] * corrector_steps
        adjusted += [corrector == "langevin"] * corrector_steps
    if predictor is not None:
        keep, gain, std = PREDICTORS[predictor](process, timesteps, nodes, levels)
        if probability_flow:
            gain, std = gain / 2, 0 * std
        rows.append(score_row(nodes, keep, gain, std, clip=clip))
        adjusted.append(False)
    adjust = ADJUST[norms] if any(adjusted) else None
    return score_plan(
        nodes,
        rows,
        clip=clip,
        denoise=denoise and predictor is not None,
        adjust=adjust,
        adjusted=adjusted * len(nodes.time),
    )


def _corrector_row(corrector, nodes, ratio, clip):
    """Of "langevin" the columns of the score itself, and std where norms are equal, for `ADJUST`; of "ald" its step."""
    if corrector == "langevin":
        return score_row(nodes, torch.zeros_like(ratio), torch.ones_like(ratio), 2 * ratio, clip=clip)
    step = 2 * (ratio * nodes.sigma[:-1]) ** 2
    return score_row(nodes, torch.ones_like(ratio), step, torch.sqrt(2 * step), clip=clip)


def _check(predictor, corrector, snr, corrector_steps, norms, probability_flow):
    for name, value, known in (("predictor", predictor, PREDICTORS), ("corrector", corrector, CORRECTORS)):
        if value is not None and value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, or None, got {value!r}")
    if predictor is corrector is None:
        raise ValueError("predictor must not be None where corrector is, got None")
    if not 0 < snr < float("inf"):
        raise ValueError(f"snr must be positive, got {snr}")
    if not isinstance(corrector_steps, int) or corrector_steps < 1:
        raise ValueError(f"corrector_steps must be an int of at least 1, got {corrector_steps!r}")
    if norms not in ADJUST:
        raise ValueError(f"norms must be one of {', '.join(ADJUST)}, got {norms!r}")
    if probability_flow and predictor not in FLOWS:
        raise ValueError(f"predictor must be one of {', '.join(FLOWS)} with probability_flow, got {predictor!r}")
