"""Samplers: every solver is a table, one loop runs them all."""

from .adaptive import DPMAdaptive
from .conditions import Condition
from .guidance import Classifier, ClassifierFree, gradient_of
from .inpaint import Inpaint
from .interpolate import slerp
from .ode import AdaptiveFlow
from .plan import Plan
from .sampler import Sampler, Step
from .solvers import *  # noqa: F403
from .solvers import SOLVERS
from .solvers import __all__ as _solvers
from .thresholding import DynamicThreshold

__all__ = [
    "SOLVERS", "AdaptiveFlow", "Classifier", "ClassifierFree", "Condition", "DPMAdaptive", "DynamicThreshold",
    "Inpaint", "Plan", "Sampler", "Step", "gradient_of", "slerp", *_solvers,
]  # fmt: skip
