"""Euler-Maruyama on the reverse SDE."""

from .predictor_corrector import predictor_corrector


def euler_maruyama(process, timesteps=None, *, clip=None, levels=None, denoise=True):
    """x' = x - (drift(t) x - diffusion(t)^2 score) h + diffusion(t) sqrt(h) z,  h = t - t'.

    Of weak order 1: the error of the samples' moments is proportional to 1 / S. The last step goes from t_min to 0.

    Args:
        process: `VPSDE`, `SubVPSDE` or `VESDE` of `fastdiff.processes`.
        timesteps: the number S of steps, or their times (see the process' `times`); None: 1000.
        clip: bound of x0's absolute value in the score, or None.
        levels: every step is h = 1 / levels, whatever the distance of the times: score_sde's way, levels = S. None: h
            as above.
        denoise: no noise at the last step.

    Returns a Plan of one row per time.
    Source: Song et al. 2021, equation 6; Kloeden and Platen, "Numerical solution of stochastic differential equations",
    1992, section 14.1, for the order.
    """
    return predictor_corrector(
        process, timesteps, clip=clip, predictor="euler_maruyama", corrector=None, levels=levels, denoise=denoise
    )
