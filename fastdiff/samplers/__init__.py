"""Samplers: every solver is a table, one loop runs them all."""

from .conditions import Condition
from .ddim import ddim, ddim_reverse
from .ddpm import ddpm
from .dpm import dpm_multistep, dpm_singlestep
from .dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from .dpmpp_2s import dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde
from .euler import euler, euler_ancestral
from .guidance import Classifier, ClassifierFree, gradient_of
from .heun import dpm_2, dpm_2_ancestral, heun
from .inpaint import Inpaint
from .interpolate import slerp
from .lms import ipndm, lms
from .plan import Plan
from .sampler import Sampler, Step
from .solvers import SOLVERS
from .thresholding import DynamicThreshold
from .unipc import unipc

__all__ = [
    "SOLVERS", "Classifier", "ClassifierFree", "Condition", "DynamicThreshold", "Inpaint", "Plan", "Sampler", "Step",
    "ddim", "ddim_reverse", "ddpm", "dpm_2", "dpm_2_ancestral", "dpm_multistep", "dpm_singlestep", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_sde", "euler",
    "euler_ancestral", "gradient_of", "heun", "ipndm", "lms", "slerp", "unipc",
]  # fmt: skip
