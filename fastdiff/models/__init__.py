"""One configurable U-Net. Nothing here knows of processes, samplers or training."""

from .config import UNetConfig
from .files import load_unet
from .unet import UNet

__all__ = ["UNet", "UNetConfig", "load_unet"]
