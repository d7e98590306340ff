"""Training: losses, timesteps, the moving average, checkpoints and the loop."""

from .ema import EMA
from .loop import TrainConfig, train

__all__ = ["EMA", "TrainConfig", "train"]
