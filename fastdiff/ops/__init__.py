"""Fused ops: one contract each, and a backend for every kind of machine."""

from . import rng, rows, vlb_columns
from ._dispatch import use_backend
from ._winograd import winograd
from .conv3x3 import conv3x3
from .diffusion_loss import diffusion_loss
from .group_norm_silu import group_norm_silu
from .normal import normal
from .q_sample import q_sample, q_step
from .reverse_step import reverse_step
from .reverse_steps import ReverseSteps
from .rms_norm_silu import rms_norm_silu
from .vlb_terms import vlb_terms

__all__ = [
    "ReverseSteps",
    "conv3x3",
    "diffusion_loss",
    "group_norm_silu",
    "normal",
    "q_sample",
    "q_step",
    "reverse_step",
    "rms_norm_silu",
    "rng",
    "rows",
    "use_backend",
    "vlb_columns",
    "vlb_terms",
    "winograd",
]
