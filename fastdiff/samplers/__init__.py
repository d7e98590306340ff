"""Samplers: every solver is a table, one loop runs them all."""

from .ddpm import ddpm
from .plan import Plan
from .sampler import Sampler, Step

__all__ = ["Plan", "Sampler", "Step", "ddpm"]
