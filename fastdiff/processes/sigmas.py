"""Noise levels of a run in the variance-exploding view: [n + 1] float64, falling, the last of them 0."""

import torch

from .schedules import checked_count


def karras(n, sigma_min, sigma_max, *, rho=7.0):
    """sigma_i = (sigma_max^(1/rho) + i / (n - 1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0..n-1, then 0.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, equation 5.
    """
    low, high = _ends(sigma_min, sigma_max)
    return _ended((high ** (1 / rho) + _ramp(n) * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def exponential(n, sigma_min, sigma_max):
    """log sigma_i evenly from log sigma_max to log sigma_min, i = 0..n-1, then 0. Source: k-diffusion."""
    return polyexponential(n, sigma_min, sigma_max, rho=1.0)


def polyexponential(n, sigma_min, sigma_max, *, rho=1.0):
    """log sigma_i = log sigma_min + (1 - i / (n - 1))^rho * log(sigma_max / sigma_min), then 0. Source: k-diffusion."""
    low, high = _ends(sigma_min, sigma_max)
    return _ended(((1 - _ramp(n)) ** rho * (high / low).log() + low.log()).exp())


def vp(n, *, beta_d=19.9, beta_min=0.1, eps=1e-3):
    """sigma_i = sqrt(exp(beta_d * t^2 / 2 + beta_min * t) - 1), t evenly from 1 to eps, i = 0..n-1, then 0.

    Source: Song et al., "Score-based generative modeling through stochastic differential equations", 2021, equation 33.
    """
    t = 1 + _ramp(n) * (eps - 1)
    return _ended(torch.expm1(beta_d * t.square() / 2 + beta_min * t).sqrt())


def _ramp(n):
    return torch.linspace(0, 1, checked_count("n", n), dtype=torch.float64, device="cpu")


def _ends(sigma_min, sigma_max):
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"sigma_min must be in (0, sigma_max), sigma_max finite, got {sigma_min} and {sigma_max}")
    return torch.tensor([sigma_min, sigma_max], dtype=torch.float64, device="cpu").unbind()


def _ended(sigmas):
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64, device="cpu")])
