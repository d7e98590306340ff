"""Each op as a user of PyTorch writes it and torch.compile takes it: (case, arguments by name) -> outputs by name."""

import math

import torch
from torch.nn import functional as F

from fastdiff.ops import rows as plan_rows
from fastdiff.ops import vlb_columns

from .cases import groups_of


def per_sample(table, t):
    return table[t].view(-1, 1, 1, 1)


def wide(value):
    """[B, C] beside [B, C, H, W]."""
    return value[..., None, None]


def normal(case, out, **_):
    return dict(out=torch.randn_like(out))


def clean(x_start, flip):
    x0 = x_start.float() / 127.5 - 1 if x_start.dtype is torch.uint8 else x_start.float()
    return x0 if flip is None else torch.where(flip.view(-1, 1, 1, 1), x0.flip(-1), x0)


def q_sample(case, x_start, t, alpha, sigma, noise=None, flip=None, noise_out=None, **_):
    x0 = clean(x_start, flip)
    drawn = torch.randn_like(x0) if noise is None else noise
    x_t = (per_sample(alpha, t) * x0 + per_sample(sigma, t) * drawn).to(case.dtype)
    return dict(x_t=x_t) if noise_out is None else dict(x_t=x_t, noise_out=drawn)


def reverse_step(case, x, model_output, rows, row, history=None, noise=None, mask=None, known=None, **_):
    B, C = x.shape[:2]
    coefficients = rows[row]

    def k(name):
        return coefficients[:, plan_rows.COLUMNS[name]].view(-1, 1, 1, 1)

    cond = model_output.float()
    m = cond[:, :C]
    if case.variant == "guided":
        uncond, m = m[:B], m[B:]
        m = uncond + k("w") * (m - uncond)
    x0 = torch.clamp(k("p_x") * x + k("p_m") * m, -k("bound"), k("bound"))
    y = k("c_x") * x + k("c_0") * x0
    outputs = {}
    if history is not None:
        y = y + sum(k(f"c_{slot + 1}") * history[slot] for slot in range(3))
        outputs["history"] = k("q_x") * x + k("q_0") * x0 + k("q_m") * m  # of one slot
    else:
        std = k("std")
        if case.variant == "learned":
            std = std * torch.exp((k("l_0") + k("l_1") * cond[:, C:]) / 2)
        y = y + std * (torch.randn_like(x) if noise is None else noise)
    if mask is not None:
        y = mask * y + (1 - mask) * (k("k_0") * known + k("k_n") * torch.randn_like(x))
    following = (k("c_in") * y).to(case.dtype)
    following = torch.cat([following, following]) if case.variant == "guided" else following
    return dict(out=y, model_input=following, **outputs)


def group_norm_silu(case, x, weight, bias, add=None, scale=None, shift=None, residual=None, **_):
    h = F.group_norm(x if add is None else x + wide(add), groups_of(case.variant), weight.to(x), bias.to(x), 1e-5)
    h = h if scale is None else h * (1 + wide(scale)) + wide(shift)
    h = F.silu(h)
    return dict(y=h if residual is None else h * (torch.rand_like(h) > 0.25) * (4 / 3) + residual)


def group_norm_silu_backward(case, grad_y, x, mean, rstd, weight, bias, add=None, scale=None, shift=None, **_):
    """From the saved statistics, as autograd has it; the mask of dropout is drawn here, where autograd reads it."""
    (B, C), S, groups = x.shape[:2], x.shape[2] * x.shape[3], groups_of(case.variant)
    moved = (x if add is None else x + wide(add)).float()
    n = ((moved.reshape(B, groups, -1) - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    normed = n * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    h = normed if scale is None else normed * (1 + wide(scale)) + wide(shift)
    gate, grad = torch.sigmoid(h), grad_y.float()
    if case.variant.endswith("dropout"):
        grad = grad * (torch.rand_like(grad) > 0.25) * (4 / 3)
    dh = grad * gate * (1 + h * (1 - gate))
    film = {} if scale is None else dict(grad_scale=(dh * normed).sum((2, 3)), grad_shift=dh.sum((2, 3)))
    dh = dh if scale is None else dh * (1 + wide(scale))
    backward = torch.ops.aten.native_group_norm_backward
    grad_x, grad_weight, grad_bias = backward(dh, moved, mean, rstd, weight.float(), B, C, S, groups, [True] * 3)
    film |= {} if add is None else dict(grad_add=grad_x.sum((2, 3)))
    return dict(grad_x=grad_x.to(x.dtype), grad_weight=grad_weight, grad_bias=grad_bias, **film)


def rms_norm_silu(case, x, weight, scale=None, shift=None, **_):
    """lucidrains' RMSNorm."""
    h = F.normalize(x, dim=1) * weight.to(x).view(1, -1, 1, 1) * x.shape[1] ** 0.5
    h = h if scale is None else h * (1 + wide(scale)) + wide(shift)
    return dict(y=F.silu(h))


def rms_norm_silu_backward(case, grad_y, **leaves):
    leaves = {name: leaves[name] for name in ("x", "weight", "scale", "shift") if leaves.get(name) is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    found = torch.autograd.grad(rms_norm_silu(case, **leaves)["y"], list(leaves.values()), grad_y)
    return {f"grad_{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def _mean(value, t, weight, sample_weight):
    return value.flatten(1).mean(1) * weight[t] * sample_weight


def diffusion_loss(case, model_output, x_start, t, target_x0, target_eps, flip, weight, sample_weight, **_):
    x0 = clean(x_start, flip)
    target = per_sample(target_x0, t) * x0 + per_sample(target_eps, t) * torch.randn_like(x0)
    difference = model_output[:, : x0.shape[1]].float() - target
    return dict(loss=_mean(difference.square(), t, weight, sample_weight))


def diffusion_loss_backward(case, grad_loss, model_output, **arguments):
    return _gradient(diffusion_loss, case, grad_loss, model_output, arguments)


def _gradient(function, case, upstream, model_output, arguments):
    leaf = model_output.detach().requires_grad_()
    (value,) = function(case, leaf, **arguments).values()
    return dict(grad=torch.autograd.grad(value, leaf, upstream)[0])


def vlb_terms(case, model_output, x_start, x_t, t, table, **_):
    """improved-diffusion's: both terms, of which t chooses."""
    x0, x = clean(x_start, None), x_t.float()
    m, v = model_output.float().chunk(2, 1)
    row = {name: per_sample(table[:, i], t) for i, name in enumerate(vlb_columns.NAMES)}
    mean = row["r_0"] * (row["p_x"] * x + row["p_m"] * m) + row["r_x"] * x
    truth, log_variance = row["r_0"] * x0 + row["r_x"] * x, row["l_0"] + row["l_1"] * v
    kl = -1 + log_variance - row["l_q"] + torch.exp(row["l_q"] - log_variance)
    kl = 0.5 * (kl + (truth - mean).square() * torch.exp(-log_variance))
    nats = torch.where((t == 0).view(-1, 1, 1, 1), -log_likelihood(x0, mean, log_variance, case.variant == "exact"), kl)
    return dict(terms=nats.flatten(1).mean(1) / math.log(2))


def cdf(u, exact):
    if exact:
        return 0.5 * (1 + torch.erf(u / math.sqrt(2)))
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def log_likelihood(x0, mean, log_variance, exact):
    inverse_std, centred = torch.exp(-0.5 * log_variance), x0 - mean
    upper, lower = (cdf(inverse_std * (centred + end), exact) for end in (1 / 255, -1 / 255))
    first, last = torch.log(upper.clamp(min=1e-12)), torch.log((1 - lower).clamp(min=1e-12))
    between = torch.log((upper - lower).clamp(min=1e-12))
    return torch.where(x0 < -0.999, first, torch.where(x0 > 0.999, last, between))


def vlb_terms_backward(case, grad_terms, model_output, **arguments):
    return _gradient(vlb_terms, case, grad_terms, model_output, arguments)
