"""Training: timesteps, the moving average, checkpoints, metrics and the loop."""

from .config import TrainConfig
from .ema import EMA
from .loop import Interrupted, train

__all__ = ["EMA", "Interrupted", "TrainConfig", "train"]
