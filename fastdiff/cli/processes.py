"""The processes that can be trained, by name, with their options and what they are when not told."""

from ..processes import VESDE, VPSDE, GaussianProcess, NCSNProcess, SubVPSDE, schedules

# Those of `fastdiff.schedules` that take T alone.
SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas")

DEFAULT = "ddpm"
_BETAS = dict(beta_min=0.1, beta_max=20.0, prediction="eps")
# A network learns eps at every noise level alike; the score, -eps / sigma, is up to 1 / sigma_min in size.
OPTIONS = {
    "ddpm": dict(schedule="linear", num_timesteps=1000, prediction="eps", variance="fixed_small"),
    "vp": _BETAS,
    "subvp": _BETAS,
    "ve": dict(sigma_min=0.01, sigma_max=50.0, prediction="eps"),
    "ncsn": dict(num_timesteps=10, sigma_min=0.01, sigma_max=1.0, prediction="eps"),
}
NAMES = tuple(dict.fromkeys(name for options in OPTIONS.values() for name in options))


def settled(told, choices):
    """{option: value} of the process, for config.json: of DDPM's its options alone, else with the name `process`.

    told: what the user gave; choices: that and every default. ValueError where an option given is another process'.
    """
    name = choices.get("process") or DEFAULT
    if name not in OPTIONS:
        raise ValueError(f"process must be one of {', '.join(OPTIONS)}, got {name!r}")
    foreign = [option for option in NAMES if option in told and option not in OPTIONS[name]]
    if foreign:
        takes = ", ".join(OPTIONS[name])
        raise ValueError(f"{foreign[0]} must not be given for process {name} ({takes}), got {told[foreign[0]]!r}")
    known = choices if name == DEFAULT else told
    options = {option: known.get(option, value) for option, value in OPTIONS[name].items()}
    return options if name == DEFAULT else {"process": name, **options}


def make(options):
    """The process that `settled` describes."""
    options = dict(options)
    name = options.pop("process", DEFAULT)
    if name == "ddpm":
        return _ddpm(**options)
    if name == "ncsn":
        return NCSNProcess(options.pop("num_timesteps"), **options)
    if name == "ve":
        return VESDE(time="linear", **options)
    return {"vp": VPSDE, "subvp": SubVPSDE}[name](**options)


def _ddpm(schedule, num_timesteps, prediction, variance):
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return GaussianProcess(getattr(schedules, schedule)(num_timesteps), prediction=prediction, variance=variance)


def solver(process):
    """The solver that samples are drawn with where none is named: that of the process' own paper."""
    if isinstance(process, NCSNProcess):
        return "annealed_langevin"
    return "ddpm" if isinstance(process, GaussianProcess) else "euler_maruyama"
