"""The mathematics of the forward process, in float64: no network, no file."""

from . import schedules, spacing
from .gaussian import GaussianProcess

__all__ = ["GaussianProcess", "schedules", "spacing"]
