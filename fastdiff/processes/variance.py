"""The variance of a reverse step: a table, or the network's own."""

import torch


def log_clipped(variance, betas):
    """log(variance) [T], whose entry at t = 0 is that of t = 1: there the posterior variance is 0."""
    first = variance[1:2] if len(variance) > 1 else betas
    return torch.cat([first, variance[1:]]).log()


def _fixed_small(process):
    return process.posterior_variance, process.posterior_log_variance_clipped


def _fixed_large(process):
    """betas, but for t = 0 the posterior variance of t = 1, which gives the better decoder likelihood."""
    first = process.posterior_log_variance_clipped[:1].exp()
    variance = torch.cat([first, process.betas[1:]])
    return variance, variance.log()


def _learned(process):
    """The raw output is the log variance."""
    return torch.zeros_like(process.betas), torch.ones_like(process.betas)


def _learned_range(process):
    """f log betas + (1 - f) log of the posterior variance, f = (v + 1) / 2, not bounded."""
    upper, lower = process.betas.log(), process.posterior_log_variance_clipped
    return (upper + lower) / 2, (upper - lower) / 2


_FIXED = {"fixed_small": _fixed_small, "fixed_large": _fixed_large}
# Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, equation 15, for the latter.
_LEARNED = {"learned": _learned, "learned_range": _learned_range}

KINDS = (*_FIXED, *_LEARNED)
LEARNED = tuple(_LEARNED)


def tables(kind, process):
    """(model_variance, model_log_variance, l_0, l_1, std), as `GaussianProcess` documents them."""
    if kind in _FIXED:
        variance, log_variance = _FIXED[kind](process)
        l_0 = l_1 = torch.zeros_like(process.betas)
        std = variance.sqrt()
    else:
        variance = log_variance = None
        l_0, l_1 = _LEARNED[kind](process)
        std = torch.ones_like(process.betas)
    return variance, log_variance, l_0, l_1, torch.cat([torch.zeros_like(std[:1]), std[1:]])
