"""Noise schedules: betas [T] in float64 on the CPU, from the least noisy step to the noisiest."""

import math
import operator

import torch


def linear(T=1000):
    """betas_t = 1000/T * (1e-4 + (0.02 - 1e-4) * t / (T - 1)), t = 0..T-1; T at least 20.

    The factor keeps the total noise of the T = 1000 for which the two ends were chosen. Returns [T] float64.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, section 4; the factor is Nichol and Dhariwal's.
    """
    T = _count("T", T)
    if T < 20:
        raise ValueError(f"T must be at least 20, where the last beta, 20 / T, is at most 1, got {T}")
    return torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)


def cosine(T=1000, *, max_beta=0.999):
    """betas_t = min(1 - f((t + 1) / T) / f(t / T), max_beta), f(u) = cos^2((u + 0.008) / 1.008 * pi / 2), t = 0..T-1.

    The cap acts on the last steps, where alphas_cumprod therefore is not f(u) / f(0). Returns [T] float64.
    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, equation 17.
    """
    T = _count("T", T)
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}")
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square()
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def _count(name, value):
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a positive int, got {value!r}") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return count
