"""DPM-Solver++: multistep solvers exponential in half the log-SNR, of an equation in x0, with or without noise."""

from .exponential import multistep


def dpmpp_2m(process, timesteps=None, *, clip=1.0, solver_type="midpoint", lower_order_final=False):
    """x' = sigma'/sigma * x - alpha' * (exp(-h) - 1) * (x0 + (x0 - x0_before) / (2 r)), h = lambda' - lambda.

    lambda = log(alpha / sigma), r = h_before / h; the first step and one to clean data are of order 1.

    Args:
        process, timesteps: a process and what its `nodes` takes, or Nodes.
        clip: bound of x0's absolute value, or None.
        solver_type: "midpoint", as above, or "heun": the difference times (exp(-h) - 1) / h + 1, not (1 - exp(-h)) / 2.
        lower_order_final: the last step is of order 1 wherever it ends (diffusers does so below 15 steps).

    Source: Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022,
    algorithm 2.
    """
    return multistep(process, timesteps, clip, 2, solver_type, lower_order_final)


def dpmpp_3m(
    process, timesteps=None, *, clip=1.0, solver_type="midpoint", lower_order_final=False, weights="published"
):
    """`dpmpp_2m` with the second difference of x0 as well; `solver_type` is that of its second step.

    Args:
        lower_order_final: the last steps are of order 2 and 1.
        weights: of the second difference: "exact", which makes order 3, or "published", half of it, as in the authors'
            code, k-diffusion and diffusers: order 2.

    Source: Lu et al. 2022, appendix B; diffusers.
    """
    return multistep(process, timesteps, clip, 3, solver_type, lower_order_final, weights=weights)


def dpmpp_2m_sde(
    process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, solver_type="midpoint", lower_order_final=False
):
    """x' = sigma'/sigma * exp(-eta h) * x + alpha' * (1 - exp(-h - eta h)) * (x0 + ...) + std * noise.

    The difference is that of `dpmpp_2m` with (1 + eta) * h for h in its weight;
    std = s_noise * sigma' * sqrt(1 - exp(-2 eta h)). Other arguments as for `dpmpp_2m`. Source: Lu et al. 2022,
    section 5; k-diffusion; eta = 1 is diffusers' sde-dpmsolver++.
    """
    return multistep(process, timesteps, clip, 2, solver_type, lower_order_final, eta=eta, s_noise=s_noise)


def dpmpp_3m_sde(
    process, timesteps=None, *, clip=1.0, eta=1.0, s_noise=1.0, solver_type="heun", lower_order_final=False,
    weights="published",
):  # fmt: skip
    """`dpmpp_2m_sde` with the second difference of x0 as well; `solver_type` is that of its second step.

    weights: as for `dpmpp_3m`; also "diffusers", whose weight has the wrong sign of a 1/2: order 1.
    Source: k-diffusion; with solver_type="midpoint" and weights="diffusers" diffusers' sde-dpmsolver++ of order 3.
    """
    return multistep(
        process, timesteps, clip, 3, solver_type, lower_order_final, eta=eta, s_noise=s_noise, weights=weights
    )
