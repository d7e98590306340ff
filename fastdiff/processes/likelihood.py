"""The table of `fastdiff.ops.vlb_terms` for a process: what its reverse steps are compared with."""

import torch

from ..ops import vlb_columns

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


def vlb_table(process, variance=None):
    """[T, 8] float64 on the CPU, columns as in `fastdiff.ops.vlb_columns`.

    variance: of a reverse step, one of `VARIANCES`; None: the process' own. "learned": the network's variance channels
    are the log-variance v. "learned_range": f log betas + (1 - f) posterior_log_variance_clipped, f = (v + 1) / 2.
    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, equation 15.
    """
    variance = process.variance if variance is None else variance
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    l_0, l_1 = _LOG_VARIANCES[variance](process)
    values = {
        "p_x": process.p_x,
        "p_m": process.p_m,
        "r_0": process.posterior_mean_coef1,
        "r_x": process.posterior_mean_coef2,
        "raw": torch.full_like(process.betas, process.prediction == "xprev"),
        "l_0": l_0,
        "l_1": l_1,
        "l_q": process.posterior_log_variance_clipped,
    }
    return torch.stack([values[name] for name in vlb_columns.NAMES], dim=1)


def _fixed_small(process):
    return process.posterior_log_variance_clipped, torch.zeros_like(process.betas)


def _fixed_large(process):
    """log betas, t = 0 taking the posterior's, which gives the better decoder likelihood."""
    first = process.posterior_log_variance_clipped[:1]
    return torch.cat([first, process.betas[1:].log()]), torch.zeros_like(process.betas)


def _learned(process):
    return torch.zeros_like(process.betas), torch.ones_like(process.betas)


def _learned_range(process):
    largest, smallest = process.betas.log(), process.posterior_log_variance_clipped
    return (largest + smallest) / 2, (largest - smallest) / 2


# (l_0, l_1) of the log-variance l_0 + l_1 v, each [T].
_LOG_VARIANCES = dict(zip(VARIANCES, (_fixed_small, _fixed_large, _learned, _learned_range), strict=True))
