"""What contracts ask of arguments. Every message names the argument, says what it must be and what came."""

import os

import torch
from torch.autograd import forward_ad

from ._dispatch import is_compiling, transforms

try:
    from fastdiff._C import conforms  # the quick answer, without words
except ImportError:

    def conforms(*arguments):
        return False


FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
SYNCHRONISE = os.environ.get("FASTDIFF_CHECK") == "1"


def is_tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def image(name, value, also=None):
    """A [B, C, *] tensor, floating or of dtype `also`; its shape, dtype and device, read once for what follows."""
    is_tensor(name, value)
    shape, dtype = value.shape, value.dtype
    if dtype not in FLOATS and dtype is not also:
        others = "bfloat16 or float64" if also is None else f"bfloat16, float64 or {str(also).removeprefix('torch.')}"
        raise ValueError(f"{name} must be float32, float16, {others}, got {dtype}")
    if len(shape) < 2:
        raise ValueError(f"{name} must have shape [B, C, *], got {list(shape)}")
    return shape, dtype, value.device


def tensors(device, *each):
    """name, tensor, shape, dtype, and again: every tensor of this shape, dtype and device."""
    try:
        if not is_compiling() and transforms() is None and conforms(device, *each):
            return
    except AttributeError:
        pass  # something is no tensor
    for i in range(0, len(each), 4):
        tensor(*each[i : i + 4], device)


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
    is_tensor(name, value)
    dtype = value.dtype
    tensors(device, name, value, shape, dtype)
    if dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {dtype}")


def counters(rng, sample_ids, B, device, *each):
    """rng [2] and sample_ids [B], both int64; and whatever else `tensors` is to check."""
    tensors(device, *each, "rng", rng, (2,), torch.int64, "sample_ids", sample_ids, (B,), torch.int64)
    if SYNCHRONISE:
        within("sample_ids", sample_ids, 2**32)


def within(name, value, end):
    """Every element in [0, end); reads device memory."""
    if ((value < 0) | (value >= end)).any():
        raise IndexError(f"{name} must be in [0, {end}), got {value.tolist()}")


def no_gradient(op, **arguments):
    """Raises where autograd would have to differentiate `op`: arguments are tensors or None."""
    if torch.is_grad_enabled():
        for name, value in arguments.items():
            if value is not None and value.requires_grad:
                advice = "detach it, or use torch.no_grad"
                raise RuntimeError(f"{name} must not require grad: {op} has no gradient ({advice})")
    if forward_mode():
        no_tangent(op, **arguments)


def forward_mode():
    """Whether a tangent could be asked for."""
    return forward_ad._current_level >= 0


def differentiating():
    """Whether a gradient or tangent could be asked for at all."""
    return torch.is_grad_enabled() or forward_mode()


def no_tangent(op, **arguments):
    """Raises where forward-mode differentiation would have to pass through `op`."""
    if not forward_mode():
        return
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(f"{name} must not carry a tangent: {op} has no forward-mode derivative")


def disjoint(name, output, others, values, identical=True):
    """`output` is apart from each of `values` (dense or None, named by `others`) or, where allowed, the same memory."""
    start = output.data_ptr()
    end = start + output.nbytes
    for i, value in enumerate(values):
        if value is None or (identical and value is output):
            continue
        first = value.data_ptr()
        if first < end and start < first + value.nbytes and not (identical and same_memory(output, value)):
            rule = f"{others[i]} itself or disjoint from it" if identical else f"disjoint from {others[i]}"
            raise ValueError(f"{name} must be {rule}, got tensors that overlap")


def same_memory(a, b):
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
