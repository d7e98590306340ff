"""One configurable U-Net, and other people's. Nothing here knows of processes, samplers or training."""

from .config import UNetConfig
from .files import load_unet, save_unet
from .unet import UNet

__all__ = ["UNet", "UNetConfig", "load_unet", "save_unet"]
