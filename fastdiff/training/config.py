"""How to train, checked."""

import math
import numbers
from dataclasses import dataclass

from .objectives import OBJECTIVES, WEIGHTINGS
from .profiles import Constant, Power
from .timesteps import SAMPLERS

SHARDS = ("ddp", "fsdp")
# What a resumed run may be told anew. The data may have moved: their content is compared.
FREE = (
    "steps", "workers", "log_every", "checkpoint_every", "keep", "sample_every", "tensorboard", "threads",
    "data", "data_dir", "image_size", "on_error", "num_samples", "shard",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Options of `fastdiff.training.train`; lengths in steps of the optimizer. Raises ValueError naming the option."""

    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1  # parts that a batch is worked on in, one after the other
    lr: float = 2e-4  # of AdamW
    betas: tuple = (0.9, 0.999)  # of AdamW
    weight_decay: float = 0.0  # of AdamW
    warmup: int = 100  # steps over which lr rises linearly
    decay_to: float = 1.0  # lr at the last step as a fraction, reached along a cosine
    grad_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999  # of the average that samples are drawn with
    ema_sigma_rel: tuple = ()  # further averages, by relative width (`profiles.Power`), for post-hoc EMA
    snapshot_every: int = 0  # steps between two snapshots of those; 0: none
    objective: str = "simple"  # see `objectives.Objective`
    weighting: str = "uniform"
    gamma: float = 5.0  # of weighting min-snr
    timesteps: str = "uniform"  # how they are drawn: `timesteps.SAMPLERS`
    label_dropout: float | None = None  # share of labels that are hidden; None: the network takes no labels
    flip: bool = False  # mirror half of the images
    seed: int = 0
    precision: str = "auto"  # "fp32", "bf16", or bf16 where a GPU has it
    log_every: int = 20
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints
    sample_every: int = 1000  # 0: no samples on the way
    tensorboard: bool = True
    workers: int = 2  # processes that read images which do not fit on the device
    compile: bool = False  # torch.compile
    cuda_graph: bool = False  # record a step on a GPU once and replay it
    shard: str = "ddp"  # on several ranks: "ddp", each holds all, or "fsdp", each holds its part (torch's FSDP2)

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            self._check(name, self._int(name) and getattr(self, name) >= 1, "a positive int")
        for name in ("warmup", "sample_every", "snapshot_every", "workers"):
            self._check(name, self._int(name) and getattr(self, name) >= 0, "an int of at least 0")
        for name in ("lr", "grad_clip", "gamma"):
            self._check(name, self._real(name) and 0 < getattr(self, name) < math.inf, "positive and finite")
        for name in ("flip", "tensorboard", "compile", "cuda_graph"):
            self._check(name, isinstance(getattr(self, name), bool), "a bool")
        self._check("decay_to", self._real("decay_to") and 0 <= self.decay_to <= 1, "in [0, 1]")
        self._check("ema_decay", self._real("ema_decay") and 0 <= self.ema_decay < 1, "in [0, 1)")
        self._check("weight_decay", self._real("weight_decay") and 0 <= self.weight_decay < math.inf, "at least 0")
        dropout = self.label_dropout
        share = self._real("label_dropout") and 0 <= dropout <= 1
        self._check("label_dropout", dropout is None or share, "in [0, 1], or None")
        for name, choices in (("objective", OBJECTIVES), ("weighting", WEIGHTINGS), ("timesteps", SAMPLERS)):
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        pair = self._reals("betas") and len(self.betas) == 2 and max(self.betas) < 1
        self._check("betas", pair, "two numbers in [0, 1)")
        self._check("ema_sigma_rel", self._reals("ema_sigma_rel"), "positive numbers")
        self.profiles()
        self._check("seed", self._int("seed") and -(2**63) <= self.seed < 2**64, "an int in [-2**63, 2**64)")
        self._check("shard", self.shard in SHARDS, f"one of {', '.join(SHARDS)}")
        self._check("shard", self.shard == "ddp" or not self.compile, "ddp with compile")
        self._check("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16")

    def profiles(self):
        """Of the averages: the one that samples are drawn with, and those for afterwards."""
        return Constant(self.ema_decay), *map(Power, self.ema_sigma_rel)

    def _reals(self, name):
        values = getattr(self, name)
        real = isinstance(values, tuple | list) and all(isinstance(value, numbers.Real) for value in values)
        return real and all(value >= 0 for value in values)

    def _int(self, name):
        return isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)

    def _real(self, name):
        return isinstance(getattr(self, name), numbers.Real) and not isinstance(getattr(self, name), bool)

    def _check(self, name, right, rule):
        if not right:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}")
