"""Fused ops: one contract each, and a backend for every kind of machine."""

from . import rng, rows
from ._dispatch import use_backend
from .group_norm_silu import group_norm_silu
from .normal import normal
from .q_sample import q_sample, q_step
from .reverse_step import reverse_step

__all__ = ["group_norm_silu", "normal", "q_sample", "q_step", "reverse_step", "rng", "rows", "use_backend"]
