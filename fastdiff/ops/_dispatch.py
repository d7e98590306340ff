"""Which backend runs an op: the one asked for, which never falls back, or the first with no reason against it."""

import contextlib
import functools
import importlib
import importlib.util
import os
from contextvars import ContextVar

import torch

OPS = (
    "normal", "q_sample", "reverse_step", "group_norm_silu", "rms_norm_silu", "diffusion_loss", "vlb_terms", "conv3x3",
)  # fmt: skip
BACKENDS = ("cuda", "triton", "cpu", "reference")

_MODULES = {"cuda": "native", "triton": "triton", "cpu": "native", "reference": "reference"}

# "" is the automatic choice. A ContextVar, because torch.compile guards its value and follows its changes.
_AT_START = os.environ.get("FASTDIFF_BACKEND", "")
_requested = ContextVar("fastdiff_backend", default=_AT_START)


def requested():
    """The backend asked for by `use_backend` or FASTDIFF_BACKEND, or ""."""
    return _requested.get()


@contextlib.contextmanager
def use_backend(name):
    """Every fastdiff op in this context (thread or task) runs on backend `name`, one of `BACKENDS`.

    An op that the backend cannot run raises: an explicit choice never falls back. The environment variable
    FASTDIFF_BACKEND does the same for a whole process.
    """
    _check_name(name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def _check_name(name):
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")


def reason(op, backend, device_type, dtype=None):
    """Why `backend` cannot run `op` on tensors of this device type and dtype; None where it can."""
    _check_name(backend)
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    return _LACKING.get((op, backend)) or _REASONS[backend](device_type, dtype, op)


# Ops that a backend leaves to others.
_LACKING = dict.fromkeys([("conv3x3", "cuda"), ("conv3x3", "triton")], "has no convolution: on a GPU cuDNN's is used")


def _cuda_reason(device_type, dtype, op):
    if device_type != "cuda":
        return f"needs tensors on a CUDA device, got {device_type}"
    if dtype == torch.float64:
        return "has no float64 kernels"
    return native().cuda_unavailable()


def _triton_reason(device_type, dtype, op):
    if device_type != "cuda" and not (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"needs tensors on a CUDA device (or TRITON_INTERPRET=1 for its interpreter), got {device_type}"
    if dtype == torch.float64:
        return "has no float64 kernels"
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _cpu_reason(device_type, dtype, op):
    if device_type != "cpu":
        return f"needs tensors on the CPU, got {device_type}"
    if op == "conv3x3" and dtype == torch.float64:
        return "has no float64 convolution"
    return native().unavailable()


_REASONS = {
    "cuda": _cuda_reason,
    "triton": _triton_reason,
    "cpu": _cpu_reason,
    "reference": lambda device_type, dtype, op: None,
}


def native():
    """The module of the C++ and CUDA backends, which is not loaded before it is asked for."""
    return importlib.import_module("fastdiff.ops.native")


@functools.cache
def choose(op, backend, device_type, dtype):
    """The name of the backend that runs the op: `backend` itself or, where that is "", the automatic choice."""
    if backend:
        against = reason(op, backend, device_type, dtype)
        if against:
            others = _others(op, backend, device_type, dtype)
            raise ValueError(f"backend {backend!r} cannot run {op}: {against}{others}")
        return backend
    candidates = [name for name in BACKENDS if name != "triton" or device_type == "cuda"]  # never its interpreter
    return next(name for name in candidates if reason(op, name, device_type, dtype) is None)


def _others(op, refused, device_type, dtype):
    names = (name for name in BACKENDS if name != refused)
    return "".join(f"\n  {name}: {reason(op, name, device_type, dtype) or 'available'}" for name in names)


@functools.cache
def _function(op, backend, device, dtype):
    contract = op.removesuffix("_backward")
    module = importlib.import_module(f"fastdiff.ops.{_MODULES[choose(contract, backend, device.type, dtype)]}")
    return getattr(module, op)


def function(op, backend, tensor):
    """The op's function in the chosen backend; `tensor` tells device and dtype."""
    return _function(op, backend, tensor.device, tensor.dtype)


_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None)}
is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
transforms = torch._C._functorch.peek_interpreter_stack
is_tracing = torch._C._is_tracing  # by torch.jit.trace


def untransformed():
    """Whether no transform of functorch and no dispatch mode is on."""
    return not _dispatch_modes() and transforms() is None


def eager(*arguments):
    """Whether a call may go past the dispatcher: ordinary tensors, and nobody is compiling, tracing or transforming."""
    return (
        not is_compiling()
        and _PLAIN.issuperset(map(type, arguments))
        and not _dispatch_modes()
        and not _function_modes()
        and transforms() is None
        and not is_tracing()
    )
