"""One reverse step of a stochastic process, x' = keep * x + gain * score + std * z: (keep, gain, std), each [S]."""

import math

from ..processes.sde import Transition


def euler_maruyama(process, timesteps, nodes, levels):
    """keep = 1 - drift h, gain = diffusion^2 h, std = diffusion sqrt(h); h to the next time, or 1 / levels.

    Source: Song et al. 2021, equation 6 and appendix G, by Euler and Maruyama's rule.
    """
    if not hasattr(process, "drift"):
        raise TypeError(f"process must have a drift and a diffusion (VPSDE, SubVPSDE, VESDE), got {process!r}")
    t, end = process.times(timesteps), process.t_end
    if nodes.sigma[-1] > 0:
        end = process.time_at(nodes.noise_level[-1]).item()
    if levels is None and math.isinf(end):
        raise ValueError(f"predictor must not be 'euler_maruyama' where clean data lies at t = -inf, got {process!r}")
    h = -t.diff(append=t.new_tensor([end])) if levels is None else 1 / levels
    g = process.diffusion(t)
    return 1 - process.drift(t) * h, g**2 * h, g * h**0.5


def reverse_diffusion(process, timesteps, nodes, levels):
    """keep = 2 - scale, gain = std^2, std of the forward transition x <- scale x + std z.

    Source: Song et al. 2021, equation 46, appendix E.
    """
    forward = transition(process, timesteps, nodes, levels)
    return 2 - forward.scale, forward.std**2, forward.std


def ancestral(process, timesteps, nodes, levels):
    """keep = 1 / scale, gain = std^2 / scale; the noise is the posterior's (fixed_small).

    Source: Ho et al. 2020, equation 7; Song et al. 2021, equations 4 and 47, appendix F.
    """
    forward = transition(process, timesteps, nodes, levels)
    return 1 / forward.scale, forward.std**2 / forward.scale, forward.posterior_std


def ancestral_large(process, timesteps, nodes, levels):
    """As `ancestral`, with the transition's noise (fixed_large), as score_sde does for VP."""
    keep, gain, _ = ancestral(process, timesteps, nodes, levels)
    return keep, gain, transition(process, timesteps, nodes, levels).std


def transition(process, timesteps, nodes, levels):
    """The exact forward kernel from each next node to its node, or score_sde's of a chain of `levels` steps."""
    if levels is not None:
        if not hasattr(process, "discretize"):
            raise TypeError(f"process must be VPSDE, SubVPSDE or VESDE where levels is given, got {process!r}")
        return process.discretize(process.times(timesteps), levels)
    scale = nodes.alpha[:-1] / nodes.alpha[1:]
    variance = nodes.sigma[:-1] ** 2 - (scale * nodes.sigma[1:]) ** 2
    return Transition(scale, variance.clamp(min=0).sqrt(), nodes.sigma[:-1])


PREDICTORS = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ancestral_large": ancestral_large,
}
