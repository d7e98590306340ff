"""Fused ops: one contract each, and a backend for every kind of machine."""

from . import rng, rows
from ._dispatch import use_backend
from ._winograd import winograd
from .conv3x3 import conv3x3
from .group_norm_silu import group_norm_silu
from .normal import normal
from .q_sample import q_sample, q_step
from .reverse_step import reverse_step

__all__ = [
    "conv3x3",
    "group_norm_silu",
    "normal",
    "q_sample",
    "q_step",
    "reverse_step",
    "rng",
    "rows",
    "use_backend",
    "winograd",
]
