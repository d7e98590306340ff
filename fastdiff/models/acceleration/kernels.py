"""What a rewritten forward calls: the fused ops, for the shapes of a foreign network."""

import torch
import torch.nn.functional as F

from ... import ops


def group_norm(x, weight, bias, groups, eps, other=None, scale=None, shift=None, silu=False):
    """act(group_norm(x + other) * (1 + scale) + shift), one op.

    Of x and other either may be the map; the other one, scale and shift are [B, C] or [B, C, 1, ...]. Where one is not,
    as in spatial conditioning, the plain operations run.
    """
    if other is not None and other.numel() > x.numel():
        x, other = other, x
    flat = [_per_channel(value, x) for value in (other, scale, shift)]
    if None in [f for f, v in zip(flat, (other, scale, shift), strict=True) if v is not None]:
        return _plain(x, weight, bias, groups, eps, other, scale, shift, silu)
    add, scale, shift = flat
    return ops.group_norm_silu(x, groups, weight, bias, eps=eps, add=add, scale=scale, shift=shift, silu=silu)


def rms_norm(x, weight, scale=None, shift=None, silu=False):
    """act(x / |x| * sqrt(C) * weight * (1 + scale) + shift); weight of C numbers in any shape; else as above."""
    flat = [_per_channel(value, x) for value in (scale, shift)]
    if None in [f for f, v in zip(flat, (scale, shift), strict=True) if v is not None]:
        y = ops.rms_norm_silu(x, weight.flatten(), silu=False) * (1 + scale) + shift
        return F.silu(y) if silu else y
    return ops.rms_norm_silu(x, weight.flatten(), scale=flat[0], shift=flat[1], silu=silu)


def _per_channel(value, x):
    """[B, C] of [B, C, 1, ...]; None of any other shape."""
    if value is None or value.dim() not in (2, x.dim()) or value.shape[:2] != x.shape[:2]:
        return None
    if value.dim() == 2:  # beside a map it would have been broadcast along its rows, not its channels
        return value if x.dim() == 2 else None
    return value.flatten(1) if value.numel() == value.shape[0] * value.shape[1] else None


def _plain(x, weight, bias, groups, eps, other, scale, shift, silu):
    y = F.group_norm(x if other is None else x + other, groups, weight, bias, eps)
    if scale is not None:
        y = torch.addcmul(shift, y, 1 + scale)
    return F.silu(y) if silu else y
