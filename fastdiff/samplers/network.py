"""How a network is run: where it lies, in which precision, in which mode."""

import contextlib
import itertools

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def locate(model, device=None):
    """(device, dtype of the parameters) of a module as it is now; (device or the CPU, None) for any other callable."""
    given = None if device is None else torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
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


def autocast(precision, device, dtype):
    """Autocast of a network with float32 parameters, or of an unknown callable; others compute in their own dtype."""
    if dtype not in (None, torch.float32):
        return contextlib.nullcontext()
    if precision != "auto":
        lower = PRECISIONS[precision]
        return torch.autocast(device.type, lower, enabled=lower is not torch.float32)
    if dtype is not None and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


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
