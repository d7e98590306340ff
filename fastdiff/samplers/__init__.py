"""Samplers: every solver is a table, one loop runs them all."""

from .conditions import Condition
from .ddpm import ddpm
from .guidance import Classifier, ClassifierFree, gradient_of
from .inpaint import Inpaint
from .interpolate import slerp
from .plan import Plan
from .sampler import Sampler, Step
from .thresholding import DynamicThreshold

__all__ = [
    "Classifier",
    "ClassifierFree",
    "Condition",
    "DynamicThreshold",
    "Inpaint",
    "Plan",
    "Sampler",
    "Step",
    "ddpm",
    "gradient_of",
    "slerp",
]
