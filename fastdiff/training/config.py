"""How to train, checked."""

import math
import numbers
from dataclasses import dataclass

# What a resumed run may be told anew. The data may have moved: their content is compared.
FREE = ("steps", "log_every", "checkpoint_every", "keep", "sample_every", "tensorboard", "data", "threads")


@dataclass(frozen=True)
class TrainConfig:
    """Options of `fastdiff.training.train`; lengths in steps of the optimizer. Raises ValueError naming the option."""

    steps: int = 100_000
    batch_size: int = 64
    lr: float = 2e-4  # of Adam
    warmup: int = 100  # steps over which lr rises linearly
    decay_to: float = 1.0  # lr at the last step as a fraction, reached along a cosine
    grad_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999
    flip: bool = False  # mirror half of the images
    seed: int = 0
    precision: str = "auto"  # "fp32", "bf16", or bf16 where a GPU has it
    log_every: int = 20
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints
    sample_every: int = 1000  # 0: no samples on the way
    tensorboard: bool = True

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            self._check(name, self._int(name) and getattr(self, name) >= 1, "a positive int")
        for name in ("warmup", "sample_every"):
            self._check(name, self._int(name) and getattr(self, name) >= 0, "an int of at least 0")
        for name in ("lr", "grad_clip"):
            self._check(name, self._real(name) and 0 < getattr(self, name) < math.inf, "positive and finite")
        for name in ("flip", "tensorboard"):
            self._check(name, isinstance(getattr(self, name), bool), "a bool")
        self._check("decay_to", self._real("decay_to") and 0 <= self.decay_to <= 1, "in [0, 1]")
        self._check("ema_decay", self._real("ema_decay") and 0 <= self.ema_decay < 1, "in [0, 1)")
        self._check("seed", self._int("seed") and -(2**63) <= self.seed < 2**64, "an int in [-2**63, 2**64)")
        self._check("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16")

    def _int(self, name):
        return isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)

    def _real(self, name):
        return isinstance(getattr(self, name), numbers.Real) and not isinstance(getattr(self, name), bool)

    def _check(self, name, right, rule):
        if not right:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}")
