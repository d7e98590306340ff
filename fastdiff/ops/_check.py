"""What contracts ask of arguments. Every message names the argument, says what it must be and what came."""

import os

import torch
from torch.autograd import forward_ad

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
SYNCHRONISE = os.environ.get("FASTDIFF_CHECK") == "1"


def is_tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def image(name, value):
    """A floating [B, C, *] tensor."""
    is_tensor(name, value)
    if value.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")
    if value.dim() < 2:
        raise ValueError(f"{name} must have shape [B, C, *], got {list(value.shape)}")


def tensor(name, value, shape, dtype, device):
    """A tensor of this shape, dtype and device."""
    is_tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    if value.dtype is not dtype:
        raise ValueError(f"{name} must be {dtype}, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")


def floating(name, value, shape, device):
    """A tensor of this shape and device, of any floating dtype."""
    tensor(name, value, shape, value.dtype if isinstance(value, torch.Tensor) else None, device)
    if value.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")


def counters(rng, sample_ids, B, device):
    """rng [2] and sample_ids [B], both int64."""
    tensor("rng", rng, (2,), torch.int64, device)
    tensor("sample_ids", sample_ids, (B,), torch.int64, device)
    if SYNCHRONISE:
        within("sample_ids", sample_ids, 2**32)


def within(name, value, end):
    """Every element in [0, end); reads device memory."""
    if ((value < 0) | (value >= end)).any():
        raise IndexError(f"{name} must be in [0, {end}), got {value.tolist()}")


def no_gradient(op, arguments):
    """Raises where autograd would have to differentiate `op`: arguments maps names to tensors or None."""
    if torch.is_grad_enabled():
        for name, value in arguments.items():
            if value is not None and value.requires_grad:
                raise RuntimeError(f"{name} must not require grad: {op} has no gradient (detach it, or use torch.no_grad)")
    no_tangent(op, arguments)


def no_tangent(op, arguments):
    """Raises where forward-mode differentiation would have to pass through `op`."""
    if forward_ad._current_level < 0:
        return
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(f"{name} must not carry a tangent: {op} has no forward-mode derivative")


def disjoint(outputs, inputs):
    """Outputs apart from one another, and each the same memory as an input or apart from it; both map names to tensors."""
    taken = [(name, *extent(value)) for name, value in outputs.items() if value is not None]
    for i, (name, start, end) in enumerate(taken):
        for other, other_start, other_end in taken[:i]:
            if start < other_end and other_start < end:
                raise ValueError(f"{name} must not overlap {other}, got tensors that share memory")
        for other, value in inputs.items():
            if value is None:
                continue
            other_start, other_end = extent(value)
            if start < other_end and other_start < end and not same_memory(outputs[name], value):
                raise ValueError(f"{name} must be {other} itself or disjoint from it, got tensors that overlap")


def same_memory(a, b):
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def extent(value):
    """First address and the one past the last of a tensor."""
    if value.numel() == 0:
        return 0, 0
    start, size = value.data_ptr(), value.element_size()
    if value.is_contiguous():
        return start, start + value.numel() * size
    return start, start + (1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))) * size
