"""Fused kernels for denoising diffusion, and the whole loop on top of them."""

__version__ = "0.1.0"

import importlib

from . import ops
from .ops import use_backend

# Loaded when first used, so that the kernels alone import at once.
_LAZY = {
    "GaussianProcess": "processes",
    "Sampler": "samplers",
    "UNet": "models",
    "UNetConfig": "models",
    "accelerate": "models",
    "load_unet": "models",
    "restore": "models",
    "save_unet": "models",
    "schedules": "processes",
}

__all__ = ["ops", "use_backend", *sorted(_LAZY)]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
