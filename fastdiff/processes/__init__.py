"""The mathematics of the forward process, in float64: no network, no file."""

from . import schedules, sigmas, spacing
from .gaussian import GaussianProcess
from .interpolated import InterpolatedProcess
from .ncsn import NCSNProcess
from .nodes import Nodes
from .sde import VESDE, VPSDE, SubVPSDE
from .sigma import SigmaProcess, SigmaView

__all__ = [
    "VESDE",
    "VPSDE",
    "GaussianProcess",
    "InterpolatedProcess",
    "NCSNProcess",
    "Nodes",
    "SigmaProcess",
    "SigmaView",
    "SubVPSDE",
    "schedules",
    "sigmas",
    "spacing",
]
