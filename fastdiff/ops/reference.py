"""The definition of every op in plain PyTorch: what the other backends are held to.

Functions fill the outputs that the contract allocated. Arithmetic is float32, float64 for float64 data, rounded once on
store. Nothing here synchronises with a GPU: there, a bad index or a missing input makes its sample NaN.
"""

import math

import torch
import torch.nn.functional as F

from . import rng as streams
from .rows import COLUMNS

MASK32 = 0xFFFFFFFF


def arithmetic(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def per_sample(value, like):
    """[B] or [1] to [B, 1, ...], in like's number of dimensions."""
    return value.reshape(-1, *(1,) * (like.dim() - 1))


# ---- The counter RNG ----


def philox(counter, key):
    """Philox4x32-10: four words from four counter words and two key words, all int64 tensors in [0, 2^32).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64 bits; a product past 2^63 wraps to the same bits
        high0, high1 = (p0 >> 32) & MASK32, (p1 >> 32) & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & MASK32, high0 ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def box_muller(a, b):
    """sqrt(-2 ln u) cos(2 pi v) and sin(2 pi v), u = float32(a) 2^-32 + 2^-33 and v = (b >> 8) 2^-24, in float64.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    u = (a.to(torch.float32) * 2.0**-32 + 2.0**-33).double()
    turns = (b >> 8).double() * 2.0**-24
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * cos_turns(turns), radius * cos_turns(turns - 0.25)


def cos_turns(turns):
    """cos(2 pi turns) for turns in [-1, 1), from an angle of at most a quarter turn, so that its zeros are exact."""
    folded = (turns - torch.round(turns)).abs()
    return torch.where(folded < 0.125, torch.cos(2 * math.pi * folded), torch.sin(2 * math.pi * (0.25 - folded)))


def words(count, rng, sample_ids, stream):
    """[4, B, ceil(count / 4)]: the Philox words of each sample's blocks."""
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=rng.device)[None]
    counter = (block, sample_ids[:, None] & MASK32, rng[1] & MASK32, torch.full_like(block, stream))
    return torch.stack(torch.broadcast_tensors(*philox(counter, (rng[0] & MASK32, (rng[0] >> 32) & MASK32))))


def draw(shape, rng, sample_ids, stream):
    """Standard normals [B, C, *] in float32."""
    count = math.prod(shape[1:])
    a, b, c, d = words(count, rng, sample_ids, stream)
    n = torch.stack([*box_muller(a, b), *box_muller(c, d)], dim=-1)
    return n.to(torch.float32).flatten(1)[:, :count].reshape(shape)


def normal(out, rng, sample_ids, stream):
    out.copy_(draw(out.shape, rng, sample_ids, stream))


# ---- Noising ----


def in_range(name, index, end, device):
    """The index limited to [0, end), and where it had to be; raises on the CPU."""
    outside = (index < 0) | (index >= end)
    if device.type == "cpu" and outside.any():
        position = int(outside.nonzero()[0])
        raise IndexError(f"{name} must be in [0, {end}), got {int(index[position])} at position {position}")
    return index.clamp(0, end - 1), outside


def q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, x_t, noise_out):
    dtype = arithmetic(x_t.dtype)
    t, outside = in_range("t", t, alpha.numel(), t.device)
    x0 = x_start.to(dtype)
    if x_start.dtype is torch.uint8:
        x0 = x0 / 127.5 - 1
    if flip is not None and x0.dim() > 2:
        x0 = torch.where(per_sample(flip, x0), x0.flip(-1), x0)
    noise = (draw(x_t.shape, rng, sample_ids, stream) if noise is None else noise).to(dtype)
    result = per_sample(alpha[t], x0) * x0 + per_sample(sigma[t], x0) * noise
    x_t.copy_(torch.where(per_sample(outside, x0), math.nan, result))
    if noise_out is not None:
        noise_out.copy_(noise)


# ---- The reverse step ----


class Row:
    """The coefficients of one row (per sample) as attributes, and the rule that a coefficient of 0 reads nothing."""

    def __init__(self, rows, row, like):
        self.row, self.outside = in_range("row", row.reshape(-1), rows.shape[0], rows.device)
        self.values, self.like, self.on_cpu = rows[self.row], like, rows.device.type == "cpu"

    def __getattr__(self, name):
        return per_sample(self.values[:, COLUMNS[name]], self.like)

    def term(self, name, argument, value):
        """coefficient * value(), 0 where the coefficient is; `argument` names what must not be None elsewhere."""
        coefficient = getattr(self, name)
        if self.on_cpu and not coefficient.any():
            return torch.zeros_like(coefficient)
        value = self.required(f"{name} is not 0", argument, value)
        return torch.where(coefficient == 0, 0, coefficient * value)

    def required(self, condition, argument, value):
        if value is not None:
            return value
        if self.on_cpu:
            raise ValueError(f"{argument} must be a tensor where a row's {condition}, got None")
        return torch.full((), math.nan, dtype=self.like.dtype, device=self.like.device)


def reverse_step(x, model_output, rows, row, out, model_input, history, noise, rng, sample_ids, extra, mask, known,
                 known_noise, gain, bound, shrink):  # fmt: skip
    if out.numel() == 0:
        return
    dtype = arithmetic(x.dtype)
    shape, (B, C) = x.shape, x.shape[:2]
    x, extra, known, noise, known_noise, mask, slots = (
        value if value is None else value.to(dtype) for value in (x, extra, known, noise, known_noise, mask, history)
    )
    r = Row(rows, row, x)
    factors = (gain, bound, shrink)
    gain, bound, shrink = (value if value is None else per_sample(value.to(dtype), x) for value in factors)

    m, v = None, None
    if model_output is not None:
        value = model_output.to(dtype)
        conditional = value[-B:]
        v = conditional[:, C:] if value.shape[1] == 2 * C else None
        m = value[:B, :C]
        if value.shape[0] == 2 * B:
            m = m + r.term("w", "model_output", conditional[:, :C] - m)
        m = m if gain is None else gain * m

    limit = r.bound if bound is None else bound
    x0 = torch.clamp(r.term("p_x", "x", x) + r.term("p_m", "model_output", m), -limit, limit)
    x0 = (x0 if shrink is None else x0 * shrink) + r.term("g_0", "extra", extra)
    s = torch.exp((r.l_0 + r.term("l_1", "model_output of 2C channels", v)) / 2)

    result = r.term("c_x", "x", x) + r.term("c_0", "x", x0) + r.term("c_m", "model_output", m)
    for slot in range(3):
        result = result + r.term(f"c_{slot + 1}", "history", None if slots is None else slots[slot])
    result = result + r.term("g_x", "extra", extra)
    result = result + r.term("g_v", "extra", extra if extra is None else s * s * extra)
    z = draw(shape, rng, sample_ids, streams.STEP).to(dtype) if noise is None and rng is not None else noise
    result = result + r.term("std", "noise or rng", z if z is None else s * z)

    pushed = r.term("q_x", "x", x) + r.term("q_0", "x", x0) + r.term("q_m", "model_output", m)
    if history is None:
        if r.on_cpu and (r.write >= 0).any():
            r.required("write is not -1", "history", None)
        result = torch.where(r.write >= 0, math.nan, result)

    if mask is not None:
        drawn = known_noise is None and rng is not None
        z = draw(shape, rng, sample_ids, streams.KNOWN).to(dtype) if drawn else known_noise
        kept = r.term("k_0", "known", known) + r.term("k_n", "known_noise or rng", z)
        result = mask * result + (1 - mask) * kept

    for slot in range(0 if history is None else 3):
        history[slot] = torch.where(r.write == slot, pushed.to(history.dtype), history[slot])
    result = torch.where(per_sample(r.outside, x), math.nan, result)
    out.copy_(result.expand(shape))
    if model_input is not None:
        following = per_sample(rows[(r.row + 1).clamp(max=rows.shape[0] - 1), COLUMNS["c_in"]], x)
        c_in = torch.where(per_sample(r.row + 1 < rows.shape[0], x), following, 1)
        model_input.copy_((c_in * result).expand(shape).repeat(model_input.shape[0] // B, *(1,) * (x.dim() - 1)))


# ---- GroupNorm and SiLU ----


def spread(value, like):
    """[B, C] or [C] to [B or 1, C, 1, ...] in float32 (float64)."""
    return value.to(arithmetic(like.dtype)).reshape(-1, like.shape[1], *(1,) * (like.dim() - 2))


def normalized(x, add, mean, rstd):
    """(x + add - mean) * rstd."""
    value = x.to(arithmetic(x.dtype))
    if add is not None:
        value = value + spread(add, x)
    B, G = mean.shape
    return ((value.reshape(B, G, -1) - mean[..., None]) * rstd[..., None]).reshape(x.shape)


def affine(n, weight, bias, scale, shift):
    """h = (n * weight + bias) * (1 + scale) + shift."""
    h = n if weight is None else n * spread(weight, n)
    h = h if bias is None else h + spread(bias, n)
    h = h if scale is None else h * (1 + spread(scale, n))
    return h if shift is None else h + spread(shift, n)


def sigmoid(h):
    """torch.sigmoid rounds the last elements of a tensor otherwise than the others, torch.exp does not."""
    return 1 / (1 + torch.exp(-h))


def kept(shape, rng, sample_ids, threshold, stream):
    """Which elements [B, C, *] dropout keeps: those whose word is not below the threshold."""
    each = words(math.prod(shape[1:]), rng, sample_ids, stream).permute(1, 2, 0)  # [B, blocks, 4]
    return each.flatten(1)[:, : math.prod(shape[1:])].reshape(shape) >= threshold


def group_norm_silu(x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd, residual=None, rng=None,
                    sample_ids=None, threshold=0, factor=1.0, stream=0):  # fmt: skip
    if x.numel() == 0:
        return
    value = x.to(arithmetic(x.dtype))
    if add is not None:
        value = value + spread(add, x)
    grouped = value.reshape(x.shape[0], groups, -1)
    first = grouped.mean(-1, keepdim=True)
    drift = (grouped - first).mean(-1, keepdim=True)  # the first mean's rounding
    centred = grouped - first - drift
    deviation = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    h = affine((centred * deviation).reshape(x.shape), weight, bias, scale, shift)
    h = h * sigmoid(h) if silu else h
    if rng is not None:
        h = torch.where(kept(x.shape, rng, sample_ids, threshold, stream), h * factor, 0)
    y.copy_(h if residual is None else h + residual.to(h.dtype))
    if mean is not None:
        mean.copy_((first + drift)[..., 0])
        rstd.copy_(deviation[..., 0])


def group_norm_silu_backward(grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu, grad_x, grad_weight,
                             grad_bias, grad_add, grad_scale, grad_shift, rng=None, sample_ids=None, threshold=0,
                             factor=1.0, stream=0):  # fmt: skip
    if x.numel() == 0:
        for gradient in (grad_weight, grad_bias, grad_add, grad_scale, grad_shift):
            if gradient is not None:
                gradient.zero_()
        return
    B, C = x.shape[:2]
    n = normalized(x, add, mean, rstd)
    dh = grad_y.to(n.dtype)
    if rng is not None:
        dh = torch.where(kept(x.shape, rng, sample_ids, threshold, stream), dh * factor, 0)
    if silu:
        h = affine(n, weight, bias, scale, shift)
        gate = sigmoid(h)
        dh = dh * gate * (1 + h * (1 - gate))

    # Sums over positions, [B, C].
    size = n[0, 0].numel()
    P, Q, R = (value.reshape(B, C, -1).sum(-1) for value in (dh, dh * n, n))
    w, b = (None if value is None else value.to(n.dtype) for value in (weight, bias))
    gain = 1 if scale is None else 1 + scale.to(n.dtype)
    a = torch.ones_like(P) * gain * (1 if w is None else w)

    def group_mean(value):
        return (value.reshape(B, groups, -1).sum(-1) / (size * C // groups)).repeat_interleave(C // groups, 1)

    mean_dn, mean_dn_n, deviation = group_mean(a * P), group_mean(a * Q), rstd.repeat_interleave(C // groups, 1)
    if grad_x is not None:
        centred = spread(a, n) * dh - spread(mean_dn, n) - n * spread(mean_dn_n, n)
        grad_x.copy_(spread(deviation, n) * centred)
    if grad_add is not None:
        grad_add.copy_(deviation * (a * P - size * mean_dn - R * mean_dn_n))
    if grad_weight is not None:
        grad_weight.copy_((gain * Q).sum(0))
    if grad_bias is not None:
        grad_bias.copy_((gain * P).sum(0))
    if grad_scale is not None:
        grad_scale.copy_((Q if w is None else w * Q) + (0 if b is None else b * P))
    if grad_shift is not None:
        grad_shift.copy_(P)


def rms_normalized(x, eps, most):
    """n = x r, r = min(1 / sqrt(mean over channels of x^2 + eps), most); r [B, 1, *]; whether the limit holds."""
    value = x.to(arithmetic(x.dtype))
    r = torch.rsqrt(value.square().mean(1, keepdim=True) + eps)
    return value * r.clamp(max=most), r.clamp(max=most), r >= most


def rms_norm_silu(x, weight, eps, most, scale, shift, silu, y):
    if x.numel() == 0:
        return
    h = affine(rms_normalized(x, eps, most)[0], weight, None, scale, shift)
    y.copy_(h * sigmoid(h) if silu else h)


def rms_norm_silu_backward(grad_y, x, weight, eps, most, scale, shift, silu, grad_x, grad_weight, grad_scale,
                           grad_shift):  # fmt: skip
    if x.numel() == 0:
        for gradient in (grad_weight, grad_scale, grad_shift):
            if gradient is not None:
                gradient.zero_()
        return
    n, r, limited = rms_normalized(x, eps, most)
    dh = grad_y.to(n.dtype)
    if silu:
        h = affine(n, weight, None, scale, shift)
        gate = sigmoid(h)
        dh = dh * gate * (1 + h * (1 - gate))
    if grad_x is not None:
        dn = affine(dh, weight, None, scale, None)
        grad_x.copy_(r * (dn - n * torch.where(limited, 0, (dn * n).mean(1, keepdim=True))))
    P, Q = (value.flatten(2).sum(-1) if value.dim() > 2 else value for value in (dh, dh * n))  # [B, C]
    if grad_weight is not None:
        grad_weight.copy_((Q if scale is None else Q * (1 + scale.to(Q.dtype))).sum(0))
    if grad_scale is not None:
        grad_scale.copy_(Q if weight is None else Q * weight.to(Q.dtype))
    if grad_shift is not None:
        grad_shift.copy_(P)


def conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y):
    h = x.to(arithmetic(x.dtype))
    if groups:
        normal = torch.empty_like(h)
        group_norm_silu(h, norm_weight, norm_bias, groups, eps, None, scale, shift, silu, normal, None, None)
        h = normal
    value = F.conv2d(h, weight.to(h.dtype), None if bias is None else bias.to(h.dtype), padding=1)
    if add is not None:
        value = value + spread(add, value)
    y.copy_(value if residual is None else value + residual)


def conv3x3_backward(grad_y, x, weight, grad_x, grad_weight):
    """By the definition: of each, the derivative of sum(grad_y * conv2d(x, weight))."""
    dtype = arithmetic(x.dtype)
    g, h, w = grad_y.to(dtype), x.to(dtype), weight.to(dtype)
    if grad_x is not None:
        grad_x.copy_(torch.nn.grad.conv2d_input(h.shape, w, g, padding=1))
    if grad_weight is not None:
        grad_weight.copy_(torch.nn.grad.conv2d_weight(h, w.shape, g, padding=1))


# ---- Losses ----

from .reference_losses import (  # noqa: E402  (which is written in terms of the above)
    diffusion_loss,
    diffusion_loss_backward,
    vlb_terms,
    vlb_terms_backward,
)

__all__ = ["diffusion_loss", "diffusion_loss_backward", "vlb_terms", "vlb_terms_backward"]
