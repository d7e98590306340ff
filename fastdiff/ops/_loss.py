"""What the contracts of losses share: a sample's mean of terms, differentiable in the network's output alone."""

import torch

from . import _check, _layout


def arithmetic(dtype):
    """What a loss of this dtype is computed and returned in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def check_samples(model_output, x_start, t, table, T, flip, weight, sample_weight):
    """model_output [B, C or 2C, *] for x_start [B, C, *], and what goes with a sample; its shape, precision and device.

    table: (name, tensor, shape) of those of T entries that are checked with them.
    """
    found, dtype, device = _check.image("model_output", model_output)
    _check.is_tensor("x_start", x_start)
    shape = x_start.shape
    if x_start.dtype is not torch.uint8:
        _check.image("x_start", x_start)
    elif len(shape) < 2:
        raise ValueError(f"x_start must have shape [B, C, *], got {list(shape)}")
    B, C, *space = shape
    if found != shape and found != (B, 2 * C, *space):
        rule = f"[B, C or 2C, *] for x_start of shape {list(shape)}"
        raise ValueError(f"model_output must have shape {rule}, got {list(found)}")
    if x_start.device != device:
        raise ValueError(f"x_start must be on {device}, got {x_start.device}")
    precision = arithmetic(dtype)
    each = ["t", t, (B,), torch.int64]
    for name, value, extent in table:
        each += [name, value, extent, precision]
    if weight is not None:
        each += ["weight", weight, (T,), precision]
    if sample_weight is not None:
        each += ["sample_weight", sample_weight, (B,), precision]
    if flip is not None:
        each += ["flip", flip, (B,), torch.bool]
    _check.tensors(device, *each)
    if _check.SYNCHRONISE:
        _check.within("t", t, T)
    return shape, precision, device


def one_gradient(op, model_output, **others):
    """Raises where autograd would have to differentiate `op` in anything but model_output, or forwards."""
    if not _check.differentiating():
        return
    if torch.is_grad_enabled():
        for name, value in others.items():
            if value is not None and value.requires_grad:
                raise RuntimeError(f"{name} must not require grad: {op} is differentiable in model_output alone")
    _check.no_tangent(op, model_output=model_output, **others)


def contiguous(value):
    return value if value is None else value.contiguous()


def result(model_output):
    """Room for a number for each sample."""
    return model_output.new_empty(model_output.shape[:1], dtype=arithmetic(model_output.dtype))


def gradient(model_output, fill):
    """The gradient, filled by fill(dense model_output, gradient), with model_output's strides where those are dense."""
    dense = _layout.dense(model_output)
    found = torch.empty_like(dense)
    fill(dense, found)
    if dense is model_output:
        return found
    other = torch.empty_like(model_output)
    return found if other.stride() == found.stride() else other.copy_(found)
