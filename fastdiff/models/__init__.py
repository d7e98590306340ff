"""One configurable U-Net, and other people's. Nothing here knows of processes, samplers or training."""

from .acceleration import accelerate, restore
from .config import UNetConfig
from .costs import summary
from .files import load_unet, save_unet
from .unet import UNet

__all__ = ["UNet", "UNetConfig", "accelerate", "load_unet", "restore", "save_unet", "summary"]
