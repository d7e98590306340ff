"""Images to train on: uint8 [N, C, H, W], with labels where there are any."""

from .labelled import Labelled
from .sources import load

__all__ = ["Labelled", "load"]
