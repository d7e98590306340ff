"""Samplers: every solver is a table, one loop runs them all."""

from .adaptive import DPMAdaptive
from .ode import AdaptiveFlow
from .plan import Plan
from .sampler import Sampler, Step
from .solvers import *  # noqa: F403
from .solvers import SOLVERS
from .solvers import __all__ as _solvers

__all__ = ["SOLVERS", "AdaptiveFlow", "DPMAdaptive", "Plan", "Sampler", "Step", *_solvers]
