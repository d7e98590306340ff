"""Images to train on: uint8 [N, C, H, W]."""

from .sources import load

__all__ = ["load"]
