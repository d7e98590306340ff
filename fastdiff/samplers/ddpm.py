"""Ancestral sampling of DDPM."""

from ..processes import GaussianProcess
from .plan import Plan


def ddpm(process, timesteps=None, *, clip=1.0):
    """x_{t-1} = posterior_mean_coef1 * x0 + posterior_mean_coef2 * x_t + std * noise,  x0 = clip(p_x * x_t + p_m * m).

    The prediction "xprev" is the mean itself, whatever the clip: x_{t-1} = m + std * noise. std^2 is the process'
    model_variance, or exp(l_0 + l_1 * v) of the network's variance channels v, and no noise is added at t = 0.

    Args:
        process: `fastdiff.GaussianProcess`; on other processes `euler_ancestral` and `ddim` with eta = 1 are this
            sampler with the posterior variance.
        timesteps: those retained (see `GaussianProcess.respace`), or their number; None: all.
        clip: bound of x0's absolute value, or None.

    Returns a Plan of one row per timestep, the noisiest first.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, algorithm 2 by way of equation 7, clipped as in
    its code; strided as Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 4.
    """
    if not isinstance(process, GaussianProcess):
        raise TypeError(f"process must be a GaussianProcess for ddpm (else see euler_ancestral), got {process!r}")
    process = process if timesteps is None else process.respace(timesteps)
    if process.prediction == "xprev":
        mean = {"c_m": 1.0}
    else:
        mean = {"c_0": process.posterior_mean_coef1.flip(0), "c_x": process.posterior_mean_coef2.flip(0)}
    return Plan(
        time=process.timestep_map.flip(0),
        p_x=process.p_x.flip(0),
        p_m=process.p_m.flip(0),
        bound=float("inf") if clip is None else clip,
        l_0=process.l_0.flip(0),
        l_1=process.l_1.flip(0),
        std=process.std.flip(0),
        **mean,
    )
