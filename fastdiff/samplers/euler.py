"""First-order solvers of the probability-flow equation dx/dsigma = eps, in the variance-exploding view."""

import math

from ..processes.nodes import nodes_of, point_at
from .checks import check_amounts
from .forms import NOISE, X0, M, Rows, X, eps


def euler(
    process, timesteps=None, *, clip=1.0, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, ask_after_churn=True
):
    """x' = x + (sigma' - sigma) * eps; in any view x' = alpha' * x0 + sigma' * eps, eps = (x - alpha * x0) / sigma.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        s_churn, s_tmin, s_tmax, s_noise: noise of deviation s_noise * sqrt(sigma_hat^2 - sigma^2) comes before steps
            from s_tmin <= sigma <= s_tmax, sigma_hat = sigma * (1 + min(s_churn / S, sqrt(2) - 1)).
        ask_after_churn: False: the network is asked before the noise and its output taken for that of sigma_hat, as
            diffusers does with eps; clip must be None then.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, algorithm 2
    without its second stage.
    """
    nodes, rows = nodes_of(process, timesteps, signal=s_churn > 0), Rows(clip)
    churn = s_churn, s_tmin, s_tmax, s_noise
    if not ask_after_churn:
        if clip is not None:
            raise ValueError(f"clip must be None where ask_after_churn is False, got {clip}")
        return _asked_before(process, nodes, rows, churn)
    for at, to in churned(process, nodes, rows, *churn):
        rows.add(at, to.alpha * X0 + to.sigma * eps(at))
    return rows.plan(nodes.start)


def _asked_before(process, nodes, rows, churn):
    """One row per step: x_hat = x + noise, x0 = p_x * x_hat + p_m * m by the coefficients of sigma_hat."""
    check_amounts(s_churn=churn[0], s_noise=churn[-1])
    for at, to in nodes.steps():
        hat, noised = _noised(process, at, len(nodes.time), *churn)
        x0 = hat.p_x * noised + hat.p_m * M
        rows.add(at, to.alpha * x0 + to.sigma / hat.sigma * (noised - hat.alpha * x0))
    return rows.plan(nodes.start)


def euler_ancestral(process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0):
    """x' = x + (sigma_down - sigma) * eps + s_noise * sigma_up * noise, in the variance-exploding view.

    sigma_up = min(sigma', eta * sigma' * sqrt(1 - sigma'^2 / sigma^2)), sigma_down = sqrt(sigma'^2 - sigma_up^2).
    process, timesteps, clip: as for `euler`. Source: k-diffusion; eta = 1 is the ancestral sampler of DDPM.
    """
    check_amounts(eta=eta, s_noise=s_noise)
    nodes, rows = nodes_of(process, timesteps), Rows(clip)
    for at, to in nodes.steps():
        down, up = ancestral(at.noise_level, to.noise_level, eta)
        rows.add(at, to.alpha * (X0 + down * eps(at) + s_noise * up * NOISE))
    return rows.plan(nodes.start)


def ancestral(level, following, eta):
    """(down, up): a step from noise level `level` goes to `down`, and noise of deviation `up` leads to `following`."""
    up = min(following, eta * following * math.sqrt(max(0.0, 1 - (following / level) ** 2)))
    return math.sqrt(following**2 - up**2), up


def churned(process, nodes, rows, s_churn, s_tmin, s_tmax, s_noise):
    """The steps (from, to), each after a row of noise to a higher level where there is churn."""
    check_amounts(s_churn=s_churn, s_noise=s_noise)
    for at, to in nodes.steps():
        hat, noised = _noised(process, at, len(nodes.time), s_churn, s_tmin, s_tmax, s_noise)
        if hat is not at:
            rows.add(hat, noised, call=False)
        yield hat, to


def _noised(process, at, steps, s_churn, s_tmin, s_tmax, s_noise):
    """(the point that churn leads to from `at`, x there)."""
    gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= at.noise_level <= s_tmax else 0.0
    if gamma == 0:
        return at, X
    hat = point_at(process, at.noise_level * (1 + gamma))
    added = math.sqrt(hat.noise_level**2 - at.noise_level**2)
    return hat, hat.alpha * (X / at.alpha + s_noise * added * NOISE)
