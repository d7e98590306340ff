"""OpenAI's enums, and its schedules by name."""

import enum

import numpy as np

from ..processes import schedules


class ModelMeanType(enum.Enum):
    """What a network predicts."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()

    @property
    def prediction(self):
        """Our name of it."""
        return {"PREVIOUS_X": "xprev", "START_X": "x0", "EPSILON": "eps"}[self.name]


class ModelVarType(enum.Enum):
    """The variance of a reverse step."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()

    @property
    def variance(self):
        """Our name of it."""
        return self.name.lower()


class LossType(enum.Enum):
    """MSE: with learned variances, plus the bound's gradient to them. RESCALED_MSE: that part times T / 1000."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self):
        return self in (LossType.KL, LossType.RESCALED_KL)


def get_named_beta_schedule(schedule_name, num_diffusion_timesteps):
    """betas [T], a float64 array, of "linear" or "cosine"."""
    if schedule_name not in ("linear", "cosine"):
        raise NotImplementedError(f"schedule_name must be 'linear' or 'cosine', got {schedule_name!r}")
    return getattr(schedules, schedule_name)(num_diffusion_timesteps).numpy()


def betas_for_alpha_bar(num_diffusion_timesteps, alpha_bar, max_beta=0.999):
    """betas_t = min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), max_beta), a float64 array [T]."""
    values = np.array([alpha_bar(t / num_diffusion_timesteps) for t in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - values[1:] / values[:-1], max_beta)
