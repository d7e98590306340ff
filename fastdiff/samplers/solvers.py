"""The solvers by name: each a function (process, timesteps=None, *, clip=1.0, **options) -> Plan."""

from .ddim import ddim, ddim_reverse
from .ddpm import ddpm
from .dpm import dpm_multistep, dpm_singlestep
from .dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from .dpmpp_2s import dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde
from .euler import euler, euler_ancestral
from .heun import dpm_2, dpm_2_ancestral, heun
from .lms import ipndm, lms
from .unipc import unipc

_FUNCTIONS = (
    ddpm, ddim, ddim_reverse, euler, euler_ancestral, heun, dpm_2, dpm_2_ancestral, lms, ipndm, dpmpp_2s,
    dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, dpm_multistep, dpm_singlestep, unipc,
)  # fmt: skip

SOLVERS = {solver.__name__: solver for solver in _FUNCTIONS}
