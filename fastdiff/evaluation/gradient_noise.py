"""How noisy the gradient of the variational bound is, with timesteps drawn evenly or by their losses."""

import math

import torch

from ..ops import reference
from ..ops import rng as streams
from ..samplers import network


def noise_scale(gradients, batch_size):
    """tr(Sigma) / |G|^2 of K gradients [K, P], each the mean over a batch: the batch size that halves the noise.

    G is the true gradient, Sigma the covariance of one sample's. With S the mean of |g_k|^2 and N that of the mean
    gradient's square, |G|^2 = (K N - S) / (K - 1) and tr(Sigma) = batch_size (S - N) K / (K - 1), both unbiased; nan
    where the noise leaves no |G|^2 above 0. Source: McCandlish et al., "An empirical model of large-batch training",
    2018, appendix A.1.
    """
    K = len(gradients)
    if gradients.dim() != 2 or K < 2:
        raise ValueError(f"gradients must be [K, P] with K at least 2, got {list(gradients.shape)}")
    gradients = gradients.double()
    single, mean = gradients.square().sum(1).mean().item(), gradients.mean(0).square().sum().item()
    signal, noise = (K * mean - single) / (K - 1), batch_size * (single - mean) * K / (K - 1)
    return noise / signal if signal > 0 else math.nan


def importance(model, process, images, *, draws=8, uniform=0.001, labels=None, seed=0):
    """p(t) = (1 - u) sqrt(E[L_t^2]) / sum + u / T, [T] float64: E over `draws` images and noises of each t.

    Source: Nichol and Dhariwal 2021, section 3.3, equation 18; u is the share that no timestep falls below.
    """
    T = process.num_timesteps
    squares = torch.zeros(T, dtype=torch.float64, device=images.device)
    with torch.no_grad():
        for t in torch.arange(T, device=images.device).split(max(1, 512 // draws)):
            times = t.repeat_interleave(draws)
            losses = _bound(model, process, images, labels, times, seed, int(t[0]))
            squares[t] = losses.double().square().view(-1, draws).mean(1)
    root = squares.sqrt()
    return (1 - uniform) * root / root.sum() + uniform / T


def gradients(model, process, images, *, p=None, batches=32, batch_size=16, labels=None, seed=0):
    """[batches, P] float32: of mean(T L_t / (T p(t))), L_t in bits per dimension, t drawn from p, or evenly (None)."""
    T, parameters = process.num_timesteps, [each for each in model.parameters() if each.requires_grad]
    p = torch.full((T,), 1 / T, dtype=torch.float64, device=images.device) if p is None else p
    found = []
    for batch in range(batches):
        ids = torch.arange(batch_size, device=images.device)
        words = reference.words(1, streams.make_rng(seed, batch, images.device), ids, streams.TIMESTEPS)[0, :, 0]
        u = (words.double() + 0.5) * 2.0**-32
        t = torch.searchsorted(p.cumsum(0) / p.sum(), u, right=True).clamp(max=T - 1)
        losses = _bound(model, process, images, labels, t, seed, T + batch) / p[t].float()
        found.append(torch.cat([each.flatten() for each in torch.autograd.grad(losses.mean(), parameters)]).float())
    return torch.stack(found)


def _bound(model, process, images, labels, t, seed, draw):
    """L_t [B] of images that follow one another from a place which depends on the draw."""
    places = (torch.arange(len(t), device=t.device) + draw * 7919) % len(images)
    rng, ids = streams.make_rng(seed, draw, t.device), torch.arange(len(t), device=t.device)
    x_start = images[places]
    x_t = process.q_sample(x_start, t, rng=rng, sample_ids=ids, dtype=torch.float32)
    time = process.timestep_map.to(t.device)[t]
    output = network.tensor_of(model(x_t, time) if labels is None else model(x_t, time, labels[places]))
    return process.vlb_terms(output.float(), x_start, x_t, t)
