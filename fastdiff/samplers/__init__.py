"""Samplers: every solver is a table, one loop runs them all."""

from .adaptive import DPMAdaptive
from .ddpm import ddpm
from .dpm_fast import dpm_fast
from .euler_maruyama import euler_maruyama
from .langevin import annealed_langevin
from .ode import AdaptiveFlow, probability_flow
from .plan import Plan
from .predictor_corrector import predictor_corrector
from .sampler import Sampler, Step

__all__ = [
    "AdaptiveFlow",
    "DPMAdaptive",
    "Plan",
    "Sampler",
    "Step",
    "annealed_langevin",
    "ddpm",
    "dpm_fast",
    "euler_maruyama",
    "predictor_corrector",
    "probability_flow",
]
