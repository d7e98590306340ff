"""The solvers by name: each (process, timesteps=None, *, clip=1.0, **options) -> Plan, or what runs in place of one."""

from .adaptive import DPMAdaptive
from .ddim import ddim, ddim_reverse
from .ddpm import ddpm
from .dpm import dpm_multistep, dpm_singlestep
from .dpm_fast import dpm_fast
from .dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from .dpmpp_2s import dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde
from .euler import euler, euler_ancestral
from .euler_maruyama import euler_maruyama
from .heun import dpm_2, dpm_2_ancestral, heun
from .langevin import annealed_langevin
from .lms import ipndm, lms
from .ode import AdaptiveFlow, probability_flow
from .predictor_corrector import predictor_corrector
from .unipc import unipc

_FUNCTIONS = (
    ddpm, ddim, ddim_reverse, euler, euler_ancestral, heun, dpm_2, dpm_2_ancestral, lms, ipndm, dpmpp_2s,
    dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, dpm_multistep, dpm_singlestep, unipc,
    dpm_fast, euler_maruyama, predictor_corrector, annealed_langevin, probability_flow,
)  # fmt: skip

SOLVERS = {solver.__name__: solver for solver in _FUNCTIONS} | {"dpm_adaptive": DPMAdaptive, "ode": AdaptiveFlow}

__all__ = [solver.__name__ for solver in _FUNCTIONS]
