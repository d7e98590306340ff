"""Noise schedules: betas [T] in float64 on the CPU, from the least noisy step to the noisiest."""

import math
import operator

import torch


def linear(T=1000, beta_start=1e-4, beta_end=0.02, *, scaled=True):
    """betas_t = f * (beta_start + (beta_end - beta_start) * t / (T - 1)), t = 0..T-1; f = 1000 / T, or 1 if not scaled.

    The factor keeps the total noise of the T = 1000 for which the two ends were chosen; diffusers has none. Returns
    [T] float64. ValueError where the factor would carry the last beta above 1, T < 1000 * beta_end.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, section 4; the factor is Nichol and Dhariwal's.
    """
    T = checked_count("T", T)
    _check_ends(beta_start, beta_end)
    factor = 1000 / T if scaled else 1.0
    if factor * beta_end > 1:
        last = 1000 * beta_end
        rule = f"at least {math.ceil(last)}, where the last beta, {last:g} / T, is at most 1"
        raise ValueError(f"T must be {rule}, got {T}")
    return torch.linspace(factor * beta_start, factor * beta_end, T, dtype=torch.float64, device="cpu")


def scaled_linear(T=1000, beta_start=0.00085, beta_end=0.012):
    """betas_t = (sqrt(beta_start) + (sqrt(beta_end) - sqrt(beta_start)) * t / (T - 1))^2, t = 0..T-1.

    The ends are those of latent diffusion; the name is diffusers'. Returns [T] float64.
    Source: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, their code.
    """
    _check_ends(beta_start, beta_end)
    ends = math.sqrt(beta_start), math.sqrt(beta_end)
    return torch.linspace(*ends, checked_count("T", T), dtype=torch.float64, device="cpu").square()


def cosine(T=1000, *, max_beta=0.999):
    """betas_t = min(1 - f((t + 1) / T) / f(t / T), max_beta), f(u) = cos^2((u + 0.008) / 1.008 * pi / 2), t = 0..T-1.

    The cap acts on the last steps, where alphas_cumprod therefore is not f(u) / f(0). Returns [T] float64.
    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, equation 17.
    """
    T = checked_count("T", T)
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}")
    u = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    f = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square()
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def sigmoid(T=1000, *, start=-3.0, end=3.0, tau=1.0, max_beta=0.999):
    """betas_t = min(1 - g((t + 1) / T) / g(t / T), max_beta), g(u) = S(end / tau) - S((start + u (end - start)) / tau).

    S is the logistic function: alphas_cumprod falls along it, g(u) / g(0). t = 0..T-1; returns [T] float64.
    Source: Jabri et al., "Scalable adaptive computation for iterative generation", 2022, as lucidrains has it.
    """
    T = checked_count("T", T)
    if not start < end or not tau > 0:
        raise ValueError(f"start must be below end and tau positive, got {start}, {end} and {tau}")
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}")
    u = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
    g = torch.sigmoid(u.new_tensor(end / tau)) - torch.sigmoid((start + u * (end - start)) / tau)
    return (1 - g[1:] / g[:-1]).clamp(max=max_beta)


def sigmoid_betas(T=1000, beta_start=1e-4, beta_end=0.02):
    """betas_t = beta_start + (beta_end - beta_start) * S(-6 + 12 t / (T - 1)), t = 0..T-1: diffusers' "sigmoid".

    S is the logistic function. Returns [T] float64. Source: Xu et al., "GeoDiff", 2022, their code.
    """
    _check_ends(beta_start, beta_end)
    places = torch.linspace(-6, 6, checked_count("T", T), dtype=torch.float64, device="cpu")
    return beta_start + (beta_end - beta_start) * places.sigmoid()


def zero_terminal_snr(betas):
    """The schedule of alpha' = (alpha - alpha_{T-1}) * alpha_0 / (alpha_0 - alpha_{T-1}), alpha = sqrt(alphas_cumprod).

    Its last beta is 1, so that the noisiest timestep has no signal; the first is kept. betas [T], T at least 2; returns
    [T] float64. Source: Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2024, algorithm 1.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach()
    if betas.dim() != 1 or len(betas) < 2 or not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must be [T] numbers in (0, 1] with T at least 2, got {betas.tolist()}")
    alpha = torch.log1p(-betas).cumsum(0).div(2).exp()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return torch.cat([betas[:1], 1 - (alpha[1:] / alpha[:-1]).square()])


def _check_ends(beta_start, beta_end):
    if not 0 < beta_start <= beta_end <= 1:
        raise ValueError(f"beta_start must be in (0, beta_end], beta_end at most 1, got {beta_start} and {beta_end}")


def checked_count(name, value):
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a positive int, got {value!r}") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return count
