"""The Triton backend: one file per op. Importing this package imports Triton."""

from .group_norm_silu import group_norm_silu
from .group_norm_silu_backward import group_norm_silu_backward
from .normal import normal
from .q_sample import q_sample
from .reverse_step import reverse_step

__all__ = ["group_norm_silu", "group_norm_silu_backward", "normal", "q_sample", "reverse_step"]
