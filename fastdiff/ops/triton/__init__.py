"""The Triton backend: one file per op. Importing this package imports Triton."""

from .diffusion_loss import diffusion_loss, diffusion_loss_backward
from .group_norm_silu import group_norm_silu
from .group_norm_silu_backward import group_norm_silu_backward
from .normal import normal
from .q_sample import q_sample
from .reverse_step import reverse_step
from .rms_norm_silu import rms_norm_silu
from .rms_norm_silu_backward import rms_norm_silu_backward
from .vlb_terms import vlb_terms, vlb_terms_backward

__all__ = [
    "diffusion_loss", "diffusion_loss_backward", "group_norm_silu", "group_norm_silu_backward", "normal", "q_sample",
    "reverse_step", "rms_norm_silu", "rms_norm_silu_backward", "vlb_terms", "vlb_terms_backward",
]  # fmt: skip
