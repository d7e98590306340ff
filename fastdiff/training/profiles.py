"""How far back an average of weights looks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Constant:
    """d_t = min(rate, t / (9 + t)) at update t = 1, 2, ...: the short memory at first forgets the initial weights.

    Source: the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    rate: float = 0.9999

    def __post_init__(self):
        if not (isinstance(self.rate, int | float) and 0 <= self.rate < 1):
            raise ValueError(f"decay must be in [0, 1), got {self.rate!r}")

    def decay(self, t):
        return min(self.rate, t / (9 + t))


@dataclass(frozen=True)
class Power:
    """d_t = (1 - 1/t)^(gamma + 1) at update t: the average of theta(tau) weighted by tau^gamma up to now.

    sigma_rel in (0, 0.28]: the weight's standard deviation as a share of the training so far, from which gamma follows:
    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2024, equations 2 and 3.
    """

    sigma_rel: float

    def __post_init__(self):
        if not (isinstance(self.sigma_rel, int | float) and 0 < self.sigma_rel <= 0.28):
            raise ValueError(f"sigma_rel must be in (0, 0.28], got {self.sigma_rel!r}")

    @property
    def gamma(self):
        inverse = self.sigma_rel**-2
        return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def decay(self, t):
        return (1 - 1 / t) ** (self.gamma + 1)
