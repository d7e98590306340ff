"""The Triton backend: one file per op. Importing this package imports Triton."""

from .normal import normal

__all__ = ["normal"]
