"""The definition of the losses in plain PyTorch, as reference.py is of the other ops."""

import math

import torch
from torch.nn.functional import logsigmoid

from .reference import arithmetic, draw, in_range, per_sample
from .vlb_columns import COLUMNS

LOG_FLOOR = math.log(1e-12)  # of the tanh approximation
LOGIT_SLOPE, LOGIT_CUBE = math.sqrt(8 / math.pi), 0.044715


def clean(x_start, flip, dtype):
    """x_start as x0."""
    x0 = x_start.to(dtype)
    if x_start.dtype is torch.uint8:
        x0 = x0 / 127.5 - 1
    if flip is not None and x0.dim() > 2:
        x0 = torch.where(per_sample(flip, x0), x0.flip(-1), x0)
    return x0


def factor(t, weight, sample_weight):
    """weight[t] * sample_weight, [B], or 1."""
    value = 1 if weight is None else weight[t]
    return value if sample_weight is None else value * sample_weight


# ---- Mean squared error ----


def residual(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, stream):
    """m - (target_x0[t] * x0 + target_eps[t] * noise), NaN where t is out of range; and t limited to its range."""
    dtype, C = arithmetic(model_output.dtype), x_start.shape[1]
    t, outside = in_range("t", t, target_x0.numel(), t.device)
    x0, m = clean(x_start, flip, dtype), model_output[:, :C].to(dtype)
    noise = (draw(x_start.shape, rng, sample_ids, stream) if noise is None else noise).to(dtype)
    a, b = per_sample(target_x0[t], x0), per_sample(target_eps[t], x0)
    target = torch.where(a == 0, 0, a * x0) + torch.where(b == 0, 0, b * noise)
    return torch.where(per_sample(outside, x0), math.nan, m - target), t


def diffusion_loss(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, weight, sample_weight,
                   stream, loss):  # fmt: skip
    difference, t = residual(
        model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, stream
    )  # fmt: skip
    loss.copy_(difference.square().flatten(1).mean(1) * factor(t, weight, sample_weight))


def diffusion_loss_backward(grad_loss, model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip,
                            weight, sample_weight, stream, grad):  # fmt: skip
    difference, t = residual(
        model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, stream
    )  # fmt: skip
    C, count = x_start.shape[1], max(x_start[:1].numel(), 1)
    scale = grad_loss * factor(t, weight, sample_weight) * (2 / count)
    grad.zero_()
    grad[:, :C] = per_sample(scale, difference) * difference


# ---- The variational bound ----


def logit(u):
    return LOGIT_SLOPE * (u + LOGIT_CUBE * u**3)


def log_mills(u):
    """The logarithm of Phi(u) / phi(u)."""
    below = torch.log(torch.special.erfcx(-u / math.sqrt(2))) + 0.5 * math.log(math.pi / 2)
    return torch.where(u > 0, torch.special.log_ndtr(u) - log_density(u), below)


def log_density(u):
    return -0.5 * u.square() - 0.5 * math.log(2 * math.pi)


def erf_mass(centre, half, unbounded):
    """log(Phi(centre + half) - Phi(centre - half)), and the densities of both ends over the mass; centre <= 0."""
    upper, lower, k = centre + half, centre - half, -2 * half * centre  # phi(lower) = phi(upper) e^-k
    share = torch.where(unbounded, -math.inf, log_mills(lower) - log_mills(upper) - k)  # of what is below
    within = torch.log(-torch.expm1(share))
    above = torch.exp(-log_mills(upper) - within)
    return torch.special.log_ndtr(upper) + within, above, torch.where(unbounded, 0, above * torch.exp(-k))


def tanh_mass(centre, half, unbounded):
    """The same of the approximation Phi(u) = sigmoid(logit(u)), its probability floored."""
    upper, lower = centre + half, centre - half
    above, below = logit(upper), logit(lower)
    bounded = logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    log_mass = logsigmoid(above) + torch.where(unbounded, 0, bounded)
    densities = [
        torch.exp(logsigmoid(at) + logsigmoid(-at) - log_mass) * LOGIT_SLOPE * (1 + 3 * LOGIT_CUBE * u.square())
        for at, u in ((above, upper), (below, lower))
    ]
    floored = log_mass < LOG_FLOOR
    above, below = (torch.where(floored, 0, density) for density in densities)
    return log_mass.clamp(min=LOG_FLOOR), above, torch.where(unbounded, 0, below)


def bin_mass(x0, centred, inverse_std, exact):
    """log P of x0's bin, and its derivatives as the bin moves up and as both its ends are stretched."""
    first, last = x0 < -0.999, x0 > 0.999
    mirrored = last | (~first & (centred > 0))  # only the lower half line keeps its digits
    inverse_std = inverse_std.double()  # a narrow bin's mass is the difference of two close numbers
    centre, half = torch.where(mirrored, -centred, centred) * inverse_std, inverse_std / 255
    log_mass, above, below = (erf_mass if exact else tanh_mass)(centre, half, first | last)
    by_shift, by_scale = above - below, (centre + half) * above - (centre - half) * below
    return *(v.to(x0.dtype) for v in (log_mass, torch.where(mirrored, -by_shift, by_shift), by_scale)),


def vlb_elements(model_output, x_start, x_t, t, table, flip, bound, exact):
    """Nats of each element, their derivatives in the mean and the variance channels, and t limited to its range."""
    dtype, C = arithmetic(model_output.dtype), x_start.shape[1]
    t, outside = in_range("t", t, len(table), t.device)
    x0, x_t, m = clean(x_start, flip, dtype), x_t.to(dtype), model_output[:, :C].to(dtype)
    row = {name: per_sample(table[t, column], x0) for name, column in COLUMNS.items()}

    estimate = row["p_x"] * x_t + row["p_m"] * m
    clipped = estimate.clamp(-bound, bound)
    raw = row["raw"] != 0
    mean = torch.where(raw, m, row["r_0"] * clipped + row["r_x"] * x_t)
    mean_by_m = torch.where(raw, 1, row["r_0"] * row["p_m"] * (estimate == clipped))
    log_variance = row["l_0"] + torch.where(row["l_1"] == 0, 0, row["l_1"] * raw_variance(model_output, C, row["l_1"]))

    truth = row["r_0"] * x0 + row["r_x"] * x_t
    difference = torch.where(raw, truth - m, row["r_0"] * (x0 - clipped))
    d, square = row["l_q"] - log_variance, difference.square() * torch.exp(-log_variance)
    kl = (torch.expm1(d) - d + square) / 2

    inverse_std = torch.exp(-0.5 * log_variance)
    log_mass, by_shift, by_scale = bin_mass(x0, x0 - mean, inverse_std, exact)
    decoder = per_sample(t == 0, x0)
    value = torch.where(decoder, -log_mass, kl)
    by_mean = torch.where(decoder, by_shift * inverse_std, -difference * torch.exp(-log_variance))
    by_log_variance = torch.where(decoder, by_scale / 2, -(torch.expm1(d) + square) / 2)
    by_v = torch.where(row["l_1"] == 0, 0, by_log_variance * row["l_1"])
    nan = torch.where(per_sample(outside, x0), math.nan, 0.0)
    return value + nan, by_mean * mean_by_m + nan, by_v + nan, t


def raw_variance(model_output, C, l_1):
    """The variance channels; where there are none and a row reads them an error on the CPU, NaN elsewhere."""
    if model_output.shape[1] == 2 * C:
        return model_output[:, C:].to(l_1.dtype)
    if l_1.device.type == "cpu" and l_1.any():
        raise ValueError("model_output must have 2C channels where table's l_1 is not 0")
    return torch.full_like(l_1, math.nan)


def vlb_terms(model_output, x_start, x_t, t, table, flip, weight, sample_weight, bound, exact, detach_mean, terms):
    value, _, _, t = vlb_elements(model_output, x_start, x_t, t, table, flip, bound, exact)
    terms.copy_(value.flatten(1).mean(1) * factor(t, weight, sample_weight) / math.log(2))


def vlb_terms_backward(grad_terms, model_output, x_start, x_t, t, table, flip, weight, sample_weight, bound, exact,
                       detach_mean, grad):  # fmt: skip
    _, by_m, by_v, t = vlb_elements(model_output, x_start, x_t, t, table, flip, bound, exact)
    C, count = x_start.shape[1], max(x_start[:1].numel(), 1)
    scale = per_sample(grad_terms * factor(t, weight, sample_weight) / (math.log(2) * count), by_m)
    grad[:, :C] = torch.zeros_like(by_m) if detach_mean else scale * by_m
    if grad.shape[1] > C:
        grad[:, C:] = scale * by_v
