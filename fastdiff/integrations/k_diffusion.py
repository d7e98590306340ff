"""k-diffusion's `sample_*` functions with its signatures, on our plans; and denoisers of our networks, and back.

    sample_dpmpp_2m(model, x, sigmas, extra_args={"y": labels})        x = x_0 + sigma * noise, model(x, sigma, **extra)

Here model returns the denoised x_0, sigmas [S + 1] fall strictly and mostly end at 0. callback({"x", "i", "sigma",
"sigma_hat", "denoised"}) is called once a step, before x moves; disable hides the progress bar. noise_sampler(sigma,
sigma_next) gives unit noise like x. Where it is None noise is torch.randn_like's, in k-diffusion's order; its `_sde`
samplers draw theirs from torchsde's Brownian tree, and ours of the same law (of one Brownian path) by `randn_like`.
"""

import math

import torch

from ..processes import VESDE
from ..samplers import SOLVERS
from .k_diffusion_adaptive import sample_dpm_adaptive
from .k_diffusion_denoisers import Denoiser, as_model
from .k_diffusion_run import follow, run

__all__ = [
    "Denoiser", "as_model", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_dpm_adaptive", "sample_dpm_fast",
    "sample_dpmpp_2m", "sample_dpmpp_2m_sde", "sample_dpmpp_2s_ancestral", "sample_dpmpp_3m_sde", "sample_dpmpp_sde",
    "sample_euler", "sample_euler_ancestral", "sample_heun", "sample_lms",
]  # fmt: skip


def _churning(name):
    def sample(
        model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf,
        s_noise=1.0,
    ):  # fmt: skip
        options = dict(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        return run(SOLVERS[name], model, x, sigmas, extra_args, callback, disable, options, noise="churn")

    return _named(sample, name, "One draw of noise a step, whether it is added or not.")


def _ancestral(name):
    def sample(
        model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None
    ):
        options = dict(eta=eta, s_noise=s_noise)
        return run(SOLVERS[name], model, x, sigmas, extra_args, callback, disable, options, "step", noise_sampler)

    return _named(sample, name, "One draw of noise a step but where it ends at 0.")


def _named(function, name, text):
    function.__name__ = function.__qualname__ = f"sample_{name}"
    function.__doc__ = f"`fastdiff.samplers.{name}` from x through sigmas; returns x. {text}"
    return function


sample_euler, sample_heun, sample_dpm_2 = map(_churning, ("euler", "heun", "dpm_2"))
sample_euler_ancestral, sample_dpm_2_ancestral, sample_dpmpp_2s_ancestral = map(
    _ancestral, ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
)


def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4):
    """`fastdiff.samplers.lms` from x through sigmas; returns x."""
    return run(SOLVERS["lms"], model, x, sigmas, extra_args, callback, disable, {"order": order})


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """`fastdiff.samplers.dpmpp_2m` from x through sigmas; returns x."""
    return run(SOLVERS["dpmpp_2m"], model, x, sigmas, extra_args, callback, disable, {})


def sample_dpmpp_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, r=1 / 2
):
    """`fastdiff.samplers.dpmpp_sde` from x through sigmas; returns x. Two draws a step, to its middle and its end."""
    options = dict(eta=eta, s_noise=s_noise, r=r)
    return run(SOLVERS["dpmpp_sde"], model, x, sigmas, extra_args, callback, disable, options, "path", noise_sampler)


def sample_dpmpp_2m_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None,
    solver_type="midpoint",
):  # fmt: skip
    """`fastdiff.samplers.dpmpp_2m_sde` from x through sigmas; returns x. No draw where eta = 0."""
    options, noise = dict(eta=eta, s_noise=s_noise, solver_type=solver_type), "step" if eta else None
    return run(SOLVERS["dpmpp_2m_sde"], model, x, sigmas, extra_args, callback, disable, options, noise, noise_sampler)


def sample_dpmpp_3m_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None
):
    """`fastdiff.samplers.dpmpp_3m_sde` from x through sigmas; returns x. No draw where eta = 0."""
    options, noise = dict(eta=eta, s_noise=s_noise), "step" if eta else None
    return run(SOLVERS["dpmpp_3m_sde"], model, x, sigmas, extra_args, callback, disable, options, noise, noise_sampler)


def sample_dpm_fast(
    model, x, sigma_min, sigma_max, n, extra_args=None, callback=None, disable=None, eta=0.0, s_noise=1.0,
    noise_sampler=None,
):  # fmt: skip
    """`fastdiff.samplers.dpm_fast` from x at sigma_max to sigma_min in n calls; returns x. One draw a step."""
    if sigma_min <= 0 or sigma_max <= 0:
        raise ValueError(f"sigma_min and sigma_max must be above 0, got {sigma_min} and {sigma_max}")
    process = VESDE(float(sigma_min), float(sigma_max), prediction="x0", t_min=1e-14)
    plan = SOLVERS["dpm_fast"](process, n, eta=eta, s_noise=s_noise)
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    starts = [stage == 0 for order in orders for stage in range(order)]
    places = torch.linspace(math.log(sigma_max), math.log(sigma_min), len(orders) + 1, dtype=torch.float64)
    sigmas = places.exp().to(x.device, x.dtype)
    return follow(plan, starts, model, x, sigmas, extra_args, callback, disable, "step", noise_sampler)
