"""Ancestral sampling of DDPM."""

from .plan import Plan


def ddpm(process, timesteps=None, *, clip=1.0):
    """x_{t-1} = posterior_mean_coef1 * x0 + posterior_mean_coef2 * x_t + std * noise,  x0 = clip(p_x * x_t + p_m * m).

    The prediction "xprev" is the mean itself, whatever the clip: x_{t-1} = m + std * noise. std^2 is the process'
    model_variance, and no noise is added at t = 0.

    Args:
        process: `fastdiff.GaussianProcess`.
        timesteps: those retained (see `GaussianProcess.respace`), or their number; None: all.
        clip: bound of x0's absolute value, or None.

    Returns a Plan of one row per timestep, the noisiest first.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, algorithm 2 by way of equation 7, clipped as in
    its code; strided as Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 4.
    """
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
        std=process.std.flip(0),
        **mean,
    )
