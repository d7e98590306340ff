"""The mathematics of the forward process, in float64: no network, no file."""

from . import schedules, sigmas, spacing
from .gaussian import GaussianProcess
from .nodes import Nodes
from .sigma import SigmaProcess, SigmaView

__all__ = ["GaussianProcess", "Nodes", "SigmaProcess", "SigmaView", "schedules", "sigmas", "spacing"]
