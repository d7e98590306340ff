"""Exact likelihoods of score-based models, by the probability-flow ODE."""

import math
from typing import NamedTuple

import torch

from ..ops import normal
from ..ops.rng import DEQUANTIZATION, PROBES, make_rng
from ..processes.continuous import precise
from ..processes.integrate import integrate
from ..processes.interpolated import continuous
from ..samplers import network


class LogLikelihood(NamedTuple):
    """Of each sample; see `log_likelihood`."""

    nats: torch.Tensor  # [B] float64: log p(x), of all of a sample's elements
    z: torch.Tensor  # like x: where the flow took it, at t_max
    calls: int  # of the network

    @property
    def bits_per_dim(self):
        """-nats / (D ln 2), [B]: of the density, of x as it was given."""
        return -self.nats / (self.z[0].numel() * math.log(2))


def log_likelihood(
    model, process, x, *, t_start=None, method="RK45", rtol=1e-5, atol=1e-5, exact=False, probes=1, seed=0,
    sample_ids=None,
):  # fmt: skip
    """log p(x) = log p_T(x(t_max)) + integral of div v(x(t), t) dt,  dx/dt = v = of_x * x + of_x0 * E[x_0 | x].

    The flow starts with x(t_start) = x and ends in the nominal prior, N(0, prior_std^2). Hutchinson's estimator of the
    divergence is p^T (dv/dx) p, p of independent signs, the same along the flow.

    Args:
        model: model(x, time) -> output of the process' prediction, [B, C or 2C, *], differentiable in x; run in
            evaluation mode.
        process: `VPSDE`, `SubVPSDE`, `VESDE`; a `GaussianProcess` runs as its `InterpolatedProcess`, whose networks are
            fed fractional timesteps, and one of noise levels alone as its `LevelProcess`.
        x: [B, C, *] float32 or float64.
        t_start: where the flow starts; None: 1e-5, as score_sde does, or t_min where that is less, or time has no
            origin.
        method, rtol, atol: of the ODE solver, see `fastdiff.processes.integrate`; the error is that of the whole batch.
        exact: the divergence itself, one vector-Jacobian product per dimension: for a few dozen of them.
        probes: sign vectors per sample, whose estimates are averaged.
        seed, sample_ids: of the probes, which come from the counter RNG: sample i has the same in every batch. None:
            0..B-1.

    Returns LogLikelihood. Raises ValueError or TypeError that names the argument.
    Source: Song et al. 2021, section 4.3 and appendix D.2; Grathwohl et al., "FFJORD", 2019; Hutchinson, 1990.
    """
    process = continuous(process)
    ids = _checked(x, probes, sample_ids)
    t_start = _first_time(process, t_start)
    directions = None if exact else [_signs(x, seed, draw, ids) for draw in range(probes)]
    calls = 0

    def field(t, state):
        nonlocal calls
        calls += 1
        of_x, of_x0 = (value.item() for value in process.flow(t))
        with torch.inference_mode(False), torch.enable_grad():
            position = state[0].detach().clone().requires_grad_()
            x0 = _estimate(model, process, position, t)
            divergence = _exact(x0, position) if exact else _hutchinson(x0, position, directions)
        D = position[0].numel()
        return of_x * state[0] + of_x0 * x0.detach(), of_x * D + of_x0 * divergence

    start = x.detach(), x.new_zeros(len(x))
    with network.evaluating(model):
        z, change = integrate(field, start, t_start, process.t_max, method=method, rtol=rtol, atol=atol)
    return LogLikelihood(process.prior_log_prob(z.double()) + change.double(), z, calls)


def bits_per_dim(model, process, images, *, dequantize=True, seed=0, sample_ids=None, **options):
    """Bits per dimension of images of 256 levels, [B] float64: -log p(x) / (D ln 2) + 7, x in [-1, 1].

    The bins of x are 2 / 256 wide, and log2(256 / 2) = 7. Uniform noise fills the bins, so that this bounds the
    discrete images' code length from above.

    Args:
        images: uint8 [B, C, *], or floating in [-1, 1], which is u / 127.5 - 1 of such bytes.
        dequantize: x = (u + uniform) / 128 - 1 with noise of the counter RNG; else x = u / 127.5 - 1, and the result is
            of the density there.
        seed, sample_ids: of the noise and the probes.
        options: those of `log_likelihood`.

    Source: Theis et al., "A note on the evaluation of generative models", 2016, section 3.1; Song et al. 2021,
    appendix D.2.
    """
    if not isinstance(images, torch.Tensor) or not (images.dtype is torch.uint8 or images.is_floating_point()):
        got = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images must be a uint8 or floating tensor, got {got}")
    floating = images.is_floating_point()
    x = images if floating else images.float() / 127.5 - 1
    if dequantize:
        ids = _checked(x, 1, sample_ids)
        level = torch.round((x + 1) * 127.5)
        x = (level + uniform(x, seed, ids)) / 128 - 1
    return log_likelihood(model, process, x, seed=seed, sample_ids=sample_ids, **options).bits_per_dim + 7


def uniform(like, seed, sample_ids):
    """Uniform numbers in [0, 1] like a tensor, the normal distribution function of the counter RNG's normals."""
    z = normal(like.shape, make_rng(seed, 0, like.device), sample_ids, stream=DEQUANTIZATION, dtype=torch.float32)
    return torch.special.ndtr(z).to(like.dtype)


def _estimate(model, process, x, t):
    t = precise(t, x.device).expand(len(x))
    fed = process.c_in(t).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1)) * x
    fed = fed.to(network.locate(model)[1] or x.dtype)
    output = network.tensor_of(model(fed, process.label(t).to(x.dtype))).to(x.dtype)
    if not output.requires_grad:
        raise ValueError("model must be differentiable in x, got an output without gradients")
    return process.predict_x0(x, t, output[:, : x.shape[1]])  # the rest are a learned variance's channels


def _hutchinson(output, x, directions):
    """The mean over p of p^T (d output / dx) p, [B]."""
    total = 0
    for place, direction in enumerate(directions):
        last = place == len(directions) - 1
        (product,) = torch.autograd.grad(output, x, direction, retain_graph=not last)
        total = total + (product * direction).flatten(1).sum(1)
    return total / len(directions)


def _exact(output, x):
    """The trace of d output / dx, [B], where no sample's output depends on another's input."""
    total, flat = 0, output.flatten(1)
    for dimension in range(flat.shape[1]):
        (product,) = torch.autograd.grad(flat[:, dimension].sum(), x, retain_graph=True)
        total = total + product.flatten(1)[:, dimension]
    return total


def _signs(like, seed, draw, sample_ids):
    """+1 and -1 like a tensor, the signs of the counter RNG's normals."""
    z = normal(like.shape, make_rng(seed, draw, like.device), sample_ids, stream=PROBES, dtype=torch.float32)
    return torch.where(z >= 0, 1.0, -1.0).to(like.dtype)


def _checked(x, probes, sample_ids):
    """The ids as a tensor."""
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x must have shape [B, C, *] and hold something, got {list(x.shape)}")
    if not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes must be an int of at least 1, got {probes!r}")
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    if ids.dtype is not torch.int64 or ids.shape != (len(x),):
        raise ValueError(f"sample_ids must be {len(x)} ints, got {ids.dtype} {list(ids.shape)}")
    return ids.to(x.device)


def _first_time(process, t_start):
    if t_start is None:
        return process.t_min if math.isinf(process.t_end) else min(process.t_min, 1e-5)
    if not process.t_end <= t_start < process.t_max or not process.sigma(t_start) > 0:
        raise ValueError(f"t_start must be before {process.t_max:g}, at a positive sigma, got {t_start}")
    return float(t_start)
