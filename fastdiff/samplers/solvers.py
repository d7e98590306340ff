"""The solvers by name: each a function (process, timesteps=None, *, clip=1.0, **options) -> Plan."""

from .ddpm import ddpm

SOLVERS = {"ddpm": ddpm}
