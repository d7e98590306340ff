"""The table of `fastdiff.ops.vlb_terms` for a process: what its reverse steps are compared with."""

import torch

from ..ops import vlb_columns
from . import variance as variances


def vlb_table(process, variance=None):
    """[T, 8] float64 on the CPU, columns as in `fastdiff.ops.vlb_columns`.

    variance: of a reverse step, one of `fastdiff.processes.variance.KINDS`; None: the process' own.
    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, equation 15.
    """
    variance = process.variance if variance is None else variance
    if variance not in variances.KINDS:
        raise ValueError(f"variance must be one of {', '.join(variances.KINDS)}, got {variance!r}")
    _, fixed, l_0, l_1, _ = variances.tables(variance, process)
    values = {
        "p_x": process.p_x,
        "p_m": process.p_m,
        "r_0": process.posterior_mean_coef1,
        "r_x": process.posterior_mean_coef2,
        "raw": torch.full_like(process.betas, process.prediction == "xprev"),
        "l_0": l_0 if fixed is None else fixed,
        "l_1": l_1,
        "l_q": process.posterior_log_variance_clipped,
    }
    return torch.stack([values[name] for name in vlb_columns.NAMES], dim=1)
