"""How a network is run: where it lies, in which precision, in which mode, and what it returns."""

import contextlib
import itertools
from collections.abc import Mapping

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def locate(model, device=None):
    """(device, dtype of the parameters) of a module as it is now; (device or the CPU, None) for any other callable."""
    given = None if device is None else torch.tensor(0, device=device).device  # "cuda" becomes "cuda:0"
    tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, torch.nn.Module) else ()
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if first is None:
        return given or torch.device("cpu"), None
    if given not in (None, first.device):
        raise ValueError(f"device must be {first.device}, where the model is, got {given}")
    return first.device, first.dtype


def check_precision(precision, dtype):
    """Raises where a network of this parameter dtype cannot run in that precision."""
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
    if dtype not in (None, torch.float32) and precision != "auto" and PRECISIONS[precision] is not dtype:
        raise ValueError(f"precision must be auto for a model of {dtype}, got {precision!r}")


def autocast(precision, device, dtype, model=None):
    """Autocast of a network with float32 parameters, or of an unknown callable; others compute in their own dtype.

    "auto" leaves float32 to a model that says it is as quick in it on a CPU (`float32_on_cpu`), as `fastdiff.UNet` is.
    """
    if dtype not in (None, torch.float32):
        return contextlib.nullcontext()
    if precision != "auto":
        lower = PRECISIONS[precision]
        return torch.autocast(device.type, lower, enabled=lower is not torch.float32)
    content = device.type == "cpu" and getattr(model, "float32_on_cpu", False)
    if dtype is not None and not content and has_bfloat16_units(device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def has_bfloat16_units(device):
    """Whether the machine multiplies bfloat16 faster than float32, rather than emulating it.

    Measured on an AMD EPYC with AVX-512 BF16, one thread: a U-Net is 1.7 to 2.1 times as fast under autocast, from 32
    channels at 8 x 8 to 128 at 32 x 32. Without such instructions a CPU is slower in bfloat16.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("amx_tile", "avx512_bf16"))
    return False


def tensor_of(output):
    """The prediction in what a network returns: a tensor, the `sample` or first value of an object, dict or tuple."""
    if isinstance(output, torch.Tensor):
        return output
    found = getattr(output, "sample", None)
    if found is None and isinstance(output, Mapping):
        found = output["sample"] if "sample" in output else next(iter(output.values()), None)
    elif found is None and isinstance(output, (tuple, list)):
        found = output[0] if output else None
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"model must return a tensor, or one in a tuple, dict or .sample, got {type(output).__name__}")
    return found


@contextlib.contextmanager
def evaluating(model):
    """A module in evaluation mode; each of its submodules is left in the mode it came in."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    if modules:
        model.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):  # parents come first, and their train() descends
            if module.training is not training:
                module.train(training)
