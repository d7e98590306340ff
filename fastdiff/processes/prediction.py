"""What a network predicts, and how x_0 and the noise follow from it.

Every kind is a line in the plane of clean data and noise, model_output = a * x_0 + b * eps, and so is the noisy data,
x_t = alpha * x_0 + sigma * eps. Two lines, two unknowns:

    x0  = (b * x_t - sigma * model_output) / d        d = alpha * b - sigma * a
    eps = (alpha * model_output - a * x_t) / d
"""

import torch

# (a, b) from a process' tables [T].
_KINDS = {
    # Ho et al. 2020, section 3.2.
    "eps": lambda p: (torch.zeros_like(p.sigma), torch.ones_like(p.sigma)),
    "x0": lambda p: (torch.ones_like(p.sigma), torch.zeros_like(p.sigma)),
    # Salimans and Ho, "Progressive distillation for fast sampling of diffusion models", 2022, appendix D.
    "v": lambda p: (-p.sigma, p.alpha),
    # Song et al., "Score-based generative modeling through stochastic differential equations", 2021: grad log q(x_t).
    "score": lambda p: (torch.zeros_like(p.sigma), -1 / p.sigma),
    # The posterior mean of x_{t-1}, Ho et al. 2020, equation 7.
    "xprev": lambda p: (p.posterior_mean_coef1 + p.posterior_mean_coef2 * p.alpha, p.posterior_mean_coef2 * p.sigma),
}

KINDS = tuple(_KINDS)
NEEDS_SIGNAL = ("eps", "score", "xprev")  # x_0 does not follow from these where alpha is 0


def line(kind, process):
    """(a, b) of model_output = a * x_0 + b * eps, each [T] float64."""
    return _KINDS[kind](process)


def to_x0(kind, process):
    """(p_x, p_m) of x0 = p_x * x_t + p_m * model_output, each [T] float64."""
    a, b = line(kind, process)
    d = process.alpha * b - process.sigma * a
    return b / d, -process.sigma / d


def to_eps(kind, process):
    """(e_x, e_m) of eps = e_x * x_t + e_m * model_output, each [T] float64."""
    a, b = line(kind, process)
    d = process.alpha * b - process.sigma * a
    return -a / d, process.alpha / d
