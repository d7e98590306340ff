"""The variational bound of images in bits per dimension, whole or estimated from some of its timesteps."""

import math
from typing import NamedTuple

import torch

from .. import ops
from ..ops import reference
from ..ops import rng as streams
from ..samplers import network


class Bound(NamedTuple):
    """Of each image, float64: total = prior + sum of vb, in bits per dimension; columns are t = 0..T-1."""

    total: torch.Tensor  # [B]
    prior: torch.Tensor  # [B]
    vb: torch.Tensor  # [B, T], the decoder's at t = 0
    x0_mse: torch.Tensor  # [B, T]: mean((x0^ - x0)^2)
    eps_mse: torch.Tensor  # [B, T]: mean((eps^ - eps)^2), eps^ = (x_t - alpha x0^) / sigma


class Estimate(NamedTuple):
    """A mean, and the half width of its 95% confidence interval: 1.96 standard errors."""

    mean: float
    half_width: float


@torch.no_grad()
def full(model, process, images, *, labels=None, clip=1.0, seed=0, sample_ids=None, noise=None):
    """`Bound` of the full sum over t, each term from one draw of noise.

    Args:
        model: model(x, t) or, with labels, model(x, t, labels): of a `GaussianProcess`. It runs, and what it returns
            is taken, as by `fastdiff.Sampler`: in evaluation mode, in its own dtype; all else is at least float32.
        images: [B, C, *], uint8, or floating in [-1, 1].
        clip: bound of |x0^|, or None.
        seed, sample_ids: of the noise, a function of (seed, t, id); None: 0..B-1.
        noise: noise(t) -> [B, C, *] in its place.

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 3.3 and figure 2.
    """
    x0 = _scaled(images)
    ids = _ids(x0, sample_ids)
    columns = []
    with network.evaluating(model):
        for t in range(process.num_timesteps):
            z = _noise(x0, seed, t, ids) if noise is None else noise(t).to(x0)
            columns.append(terms(model, process, x0, torch.full_like(ids, t), z, labels, clip))
    vb, x0_mse, eps_mse = (torch.stack(each, 1) for each in zip(*columns, strict=True))
    prior = prior_bits(process, x0)
    return Bound(prior + vb.sum(1), prior, vb, x0_mse, eps_mse)


@torch.no_grad()
def stratified(model, process, images, timesteps, *, labels=None, clip=1.0, seed=0, sample_ids=None):
    """An unbiased estimate of each image's total, [B] float64: prior + T / K * sum of vb(t_k), t_k of K = timesteps.

    t_k = floor((k + u) T / K), k = 0..K-1, u uniform and drawn anew for each image and k, from the counter RNG; K
    divides T. All else as for `full`.
    """
    T = process.num_timesteps
    if isinstance(timesteps, bool) or not 1 <= timesteps <= T or T % timesteps:
        raise ValueError(f"timesteps must divide the process' {T}, got {timesteps}")
    x0 = _scaled(images)
    ids = _ids(x0, sample_ids)
    total = prior_bits(process, x0)
    with network.evaluating(model):
        for k in range(timesteps):
            word = reference.words(1, streams.make_rng(seed, k, x0.device), ids, streams.TIMESTEPS)[0, :, 0]
            t = (((k << 32) + word) * (T // timesteps)) >> 32
            z = _noise(x0, seed, T + k, ids)
            total = total + T / timesteps * terms(model, process, x0, t, z, labels, clip)[0]
    return total


def estimate(total):
    """`Estimate` of the mean over all images from those seen: [N] -> what N images and their draws leave open."""
    spread = total.std().item() if len(total) > 1 else math.inf
    return Estimate(total.mean().item(), 1.96 * spread / math.sqrt(len(total)))


def terms(model, process, x0, t, noise, labels=None, clip=1.0):
    """(vb, x0_mse, eps_mse) of each image at its t, [B] float64 each."""
    alpha, sigma = (process.table(name, x0.device, x0.dtype)[t] for name in ("alpha", "sigma"))
    alpha, sigma = (value.view(-1, *(1,) * (x0.dim() - 1)) for value in (alpha, sigma))
    x_t = alpha * x0 + sigma * noise
    time = process.timestep_map.to(t.device)[t]
    fed = x_t.to(network.locate(model)[1] or x_t.dtype)
    output = network.tensor_of(model(fed, time) if labels is None else model(fed, time, labels)).to(x0.dtype)
    guess = process.predict_x0(x_t, t, output[:, : x0.shape[1]])
    guess = guess if clip is None else guess.clamp(-clip, clip)
    vb = process.vlb_terms(output, x0, x_t, t, clip=clip)
    return tuple(value.double() for value in (vb, _mse(guess, x0), _mse((x_t - alpha * guess) / sigma, noise)))


def prior_bits(process, x0):
    """KL(q(x_T | x_0) || N(0, 1)) per dimension in bits, [B] float64."""
    variance = process.sigma[-1].item() ** 2
    mean = process.alpha[-1].item() * x0.double()
    return ((variance - 1 - math.log(variance) + mean.square()) / 2).flatten(1).mean(1) / math.log(2)


def _mse(a, b):
    return (a - b).square().flatten(1).mean(1)


def _scaled(images):
    if not isinstance(images, torch.Tensor) or not (images.dtype is torch.uint8 or images.is_floating_point()):
        raise TypeError(f"images must be a uint8 or floating tensor, got {getattr(images, 'dtype', type(images))}")
    if images.dtype is torch.uint8:
        return images.float() / 127.5 - 1
    return images if images.dtype is torch.float64 else images.float()


def _ids(x0, sample_ids):
    return torch.as_tensor(range(len(x0)) if sample_ids is None else sample_ids, dtype=torch.int64, device=x0.device)


def _noise(x0, seed, draw, ids):
    rng = streams.make_rng(seed, draw, x0.device)
    return ops.normal(x0.shape, rng, ids, stream=streams.TRAINING, dtype=torch.float32).to(x0.dtype)
