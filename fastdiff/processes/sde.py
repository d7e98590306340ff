"""The VP, sub-VP and VE SDEs: Song et al., "Score-based generative modeling through stochastic differential equations",
2021, section 3.4 and appendix B, with the constants and network conventions of its code, score_sde."""

import math
from typing import NamedTuple

import torch

from .continuous import ContinuousProcess, precise


class Transition(NamedTuple):
    """One step of a discretised chain towards the noise, x <- scale * x + std * z; float64, alike in shape."""

    scale: torch.Tensor
    std: torch.Tensor
    sigma: torch.Tensor  # of the marginal after the step

    @property
    def posterior_std(self):
        """Deviation of the state before the step given the one after it and x_0 (Ho et al. 2020, equation 7)."""
        return self.std * (self.sigma**2 - self.std**2).clamp(min=0).sqrt() / (self.scale * self.sigma)


class _LinearBetas(ContinuousProcess):
    """beta(t) = beta_min + t * (beta_max - beta_min), t in (0, 1]; drift = -beta / 2; networks are fed 999 t."""

    def __init__(self, beta_min=0.1, beta_max=20.0, *, prediction="eps", t_min=1e-3):
        if not 0 < beta_min <= beta_max < float("inf"):
            raise ValueError(f"beta_min must be in (0, beta_max], got {beta_min} and beta_max {beta_max}")
        super().__init__(prediction, t_min)
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def beta(self, t):
        return self.beta_min + precise(t) * (self.beta_max - self.beta_min)

    def integral(self, t):
        """The integral of beta from 0 to t."""
        t = precise(t)
        return t * self.beta_min + t * t * (self.beta_max - self.beta_min) / 2

    def alpha(self, t):
        return torch.exp(-self.integral(t) / 2)

    def drift(self, t):
        return -self.beta(t) / 2

    def label(self, t):
        return 999 * precise(t)

    def _time_of(self, integral):
        """The inverse of `integral`: the positive root, written without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


class VPSDE(_LinearBetas):
    """dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw: alpha = exp(-B / 2), sigma^2 = 1 - exp(-B), B = integral of beta.

    beta(t) = beta_min + t (beta_max - beta_min). The network is fed 999 t and returns eps = -sigma * score, as
    score_sde's continuous VP networks do (`prediction` for others). Prior N(0, 1). Score_sde's discrete VP networks
    are DDPM's: `GaussianProcess`. Source: Song et al. 2021, equations 11, 29 and 33.
    """

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def diffusion(self, t):
        return torch.sqrt(self.beta(t))

    def time_at(self, noise_level):
        return self._time_of(torch.log1p(precise(noise_level) ** 2))

    def discretize(self, t, N):
        """score_sde's chain of N steps: scale = sqrt(1 - beta_k), std = sqrt(beta_k), k = trunc(t (N - 1)).

        beta_k = beta(k / (N - 1)) / N; N must exceed beta_max. Source: Song et al. 2021, appendix E, equation 24.
        """
        if self.beta_max >= N:
            raise ValueError(f"N must be greater than beta_max = {self.beta_max:g}, got {N}")
        betas = torch.linspace(self.beta_min / N, self.beta_max / N, N, dtype=torch.float64, device="cpu")
        marginal = -torch.expm1(torch.log1p(-betas).cumsum(0))
        k = _level(t, N)
        return Transition(torch.sqrt(1 - betas[k]), torch.sqrt(betas[k]), torch.sqrt(marginal[k]))


class SubVPSDE(_LinearBetas):
    """dx = -beta(t) x / 2 dt + sqrt(beta(t) (1 - exp(-2 B))) dw: alpha = exp(-B / 2), sigma = 1 - exp(-B).

    sigma is 1 - exp(-B), not its root: variances are below those of VP. All else as for `VPSDE`.
    Source: Song et al. 2021, section 3.4 and equation 29.
    """

    def sigma(self, t):
        return -torch.expm1(-self.integral(t))

    def diffusion(self, t):
        return torch.sqrt(self.beta(t) * -torch.expm1(-2 * self.integral(t)))

    def time_at(self, noise_level):
        return self._time_of(2 * torch.asinh(precise(noise_level) / 2))  # sigma / alpha = 2 sinh(B / 2)

    def discretize(self, t, N):
        """score_sde's chain of N steps, Euler-Maruyama's: scale = 1 + drift / N, std = diffusion / sqrt(N)."""
        return Transition(1 + self.drift(t) / N, self.diffusion(t) / math.sqrt(N), self.sigma(t))


class VESDE(ContinuousProcess):
    """dx = sigma(t) sqrt(2 ln(sigma_max / sigma_min)) dw: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    score_sde's sigma_max is 50 for CIFAR-10 (the largest distance between images of the training set: 348 and 1348 for
    CelebA-HQ at 256 and FFHQ at 1024). Networks are fed sigma(t), or 999 t with time="linear", which is linear in
    log sigma, and return the score. Prior N(0, sigma_max^2).
    Source: Song et al. 2021, equations 9, 29 and 30, appendix C; Song and Ermon, "Improved techniques for training
    score-based generative models", 2020, technique 1.
    """

    def __init__(self, sigma_min=0.01, sigma_max=50.0, *, prediction="score", time="sigma", t_min=1e-5):
        if time not in ("sigma", "linear"):
            raise ValueError(f"time must be sigma or linear, got {time!r}")
        if not 0 < sigma_min < sigma_max < float("inf"):
            raise ValueError(f"sigma_min must be in (0, sigma_max), got {sigma_min} and sigma_max {sigma_max}")
        super().__init__(prediction, t_min)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.prior_std, self.time = self.sigma_max, time

    def alpha(self, t):
        return torch.ones_like(precise(t))

    def sigma(self, t):
        return self.sigma_min * torch.exp(precise(t) * self._log_ratio)

    def drift(self, t):
        return torch.zeros_like(precise(t))

    def diffusion(self, t):
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def label(self, t):
        return self.sigma(t) if self.time == "sigma" else 999 * precise(t)

    def time_at(self, noise_level):
        return torch.log(precise(noise_level) / self.sigma_min) / self._log_ratio

    def discretize(self, t, N):
        """score_sde's chain of N geometric levels: scale = 1, std^2 = sigma_k^2 - sigma_{k-1}^2, k = trunc(t (N - 1)).

        sigma_{-1} = 0. Source: Song et al. 2021, appendix E, equation 20.
        """
        ends = math.log(self.sigma_min), math.log(self.sigma_max)
        levels = torch.linspace(*ends, N, dtype=torch.float64, device="cpu").exp()
        before = torch.cat([levels.new_zeros(1), levels[:-1]])
        k = _level(t, N)
        return Transition(self.alpha(t), torch.sqrt(levels[k] ** 2 - before[k] ** 2), levels[k])

    @property
    def _log_ratio(self):
        return math.log(self.sigma_max / self.sigma_min)


def _level(t, N):
    """Truncated, not rounded, as score_sde's."""
    return (precise(t) * (N - 1)).long()
