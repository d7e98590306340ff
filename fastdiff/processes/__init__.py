"""The mathematics of the forward process, in float64: no network, no file."""

from . import schedules, spacing
from .gaussian import GaussianProcess
from .interpolated import InterpolatedProcess
from .ncsn import NCSNProcess
from .sde import VESDE, VPSDE, SubVPSDE

__all__ = [
    "VESDE",
    "VPSDE",
    "GaussianProcess",
    "InterpolatedProcess",
    "NCSNProcess",
    "SubVPSDE",
    "schedules",
    "spacing",
]
