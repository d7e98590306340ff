"""The variance-exploding view x = x_0 + sigma * eps: networks conditioned on sigma, and discrete ones seen in it."""

import math
import numbers

import torch

from . import sigmas
from .nodes import Nodes, checked_levels


class SigmaProcess:
    """x = x_0 + sigma * eps and a network of sigma: x0 = p_x * x + p_m * model(c_in * x, time). With d = sigma_data:

        prediction   p_x                  p_m                              c_in
        "edm"        d^2 / (sigma^2+d^2)  sigma * d / sqrt(sigma^2+d^2)    1 / sqrt(sigma^2+d^2)
        "v"          d^2 / (sigma^2+d^2)  -sigma * d / sqrt(sigma^2+d^2)   1 / sqrt(sigma^2+d^2)
        "x0"         0                    1                                1        (a denoiser)
        "eps"        1                    -sigma                           1
        "score"      1                    sigma^2                          1

    Args:
        prediction: one of these.
        time: what the network is fed: "log", log(sigma) / 4; "sigma"; or "angle", 2 / pi * atan(sigma). None: "log" for
            "edm", "angle" for "v", else "sigma".
        sigma_min, sigma_max: the range of runs given by their number of steps.
        sigma_data: the data's standard deviation.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, table 1.
    """

    def __init__(self, prediction="edm", *, time=None, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5):
        if prediction not in _SCALINGS:
            raise ValueError(f"prediction must be one of {', '.join(_SCALINGS)}, got {prediction!r}")
        if time not in (None, *_TIMES):
            raise ValueError(f"time must be one of {', '.join(_TIMES)}, or None, got {time!r}")
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min must be in (0, sigma_max), sigma_max finite, got {sigma_min} and {sigma_max}")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data must be finite and positive, got {sigma_data}")
        self.prediction, self.time = prediction, time or {"edm": "log", "v": "angle"}.get(prediction, "sigma")
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def __repr__(self):
        range_ = f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, sigma_data={self.sigma_data}"
        return f"{type(self).__name__}(prediction={self.prediction!r}, time={self.time!r}, {range_})"

    def nodes(self, timesteps=None):
        """The points of a run: timesteps are its noise levels [S + 1], falling; or S, on Karras' curve; None: 18."""
        if timesteps is None or isinstance(timesteps, numbers.Integral):
            steps = 18 if timesteps is None else timesteps
            return self.through(sigmas.karras(steps, self.sigma_min, self.sigma_max))
        return self.through(timesteps)

    def through(self, noise_level):
        """The points of these noise levels, [S + 1], falling, the last of them 0 for clean data."""
        level = checked_levels("timesteps", noise_level)
        s = level[:-1]
        p_x, p_m, c_in = (c.expand_as(s) for c in _SCALINGS[self.prediction](s, self.sigma_data))
        return Nodes(_TIMES[self.time](s), torch.ones_like(level), level, p_x, p_m, c_in)


def _edm(s, d):
    norm = (s.square() + d * d).sqrt()
    return d * d / norm.square(), s * d / norm, 1 / norm


def _v(s, d):
    p_x, p_m, c_in = _edm(s, d)
    return p_x, -p_m, c_in


_ONE, _ZERO = torch.ones((), dtype=torch.float64, device="cpu"), torch.zeros((), dtype=torch.float64, device="cpu")
_SCALINGS = {
    "edm": _edm,
    "v": _v,
    "x0": lambda s, d: (_ZERO, _ONE, _ONE),
    "eps": lambda s, d: (_ONE, -s, _ONE),
    "score": lambda s, d: (_ONE, s.square(), _ONE),
}
_TIMES = {"log": lambda s: s.log() / 4, "sigma": torch.clone, "angle": lambda s: 2 / math.pi * s.atan()}


class SigmaView:
    """A discrete process as x = x_0 + sigma * eps, sigma its noise_level; the network is fed x / sqrt(1 + sigma^2).

    Args:
        process: `fastdiff.GaussianProcess` of prediction "eps", "x0", "v" or "score".
        quantize: feed the integer timestep that is nearest in log sigma, not a fraction between two, linear in it.

    Attributes: process, quantize, sigma_min, sigma_max (of its timesteps).
    Source: k-diffusion's wrappers of discrete networks; Karras et al. 2022, appendix C.3.
    """

    def __init__(self, process, quantize=False):
        if process.prediction == "xprev":
            raise ValueError("process must not predict 'xprev', which means nothing between its timesteps")
        self.process, self.quantize = process, bool(quantize)
        known = process.noise_level.isfinite()  # not where alphas_cumprod reaches 0
        self._log_levels, self._times = process.noise_level[known].log(), process.timestep_map[known]
        self.sigma_min, self.sigma_max = (self._log_levels[i].exp().item() for i in (0, -1))

    def __repr__(self):
        return f"SigmaView({self.process!r}, quantize={self.quantize})"

    def nodes(self, timesteps=None):
        """The points of a run: timesteps are noise levels [S + 1], falling; or S, evenly from T - 1 to 0; None: T."""
        last = len(self._times) - 1
        if timesteps is None or isinstance(timesteps, numbers.Integral):
            steps = last + 1 if timesteps is None else timesteps
            if isinstance(steps, bool) or steps < 1:
                raise ValueError(f"timesteps must be a positive int, or noise levels, got {timesteps}")
            places = torch.linspace(last, 0, int(steps), dtype=torch.float64, device="cpu")
            timesteps = torch.cat([_interpolated(places, self._log_levels).exp(), places.new_zeros(1)])
        return self.through(timesteps)

    def through(self, noise_level):
        """The points of these noise levels, [S + 1], falling, the last of them 0 for clean data."""
        level = checked_levels("timesteps", noise_level)
        place = self._places(level[:-1].log())
        time = self._times[place.round().long()] if self.quantize else _interpolated(place, self._times.double())
        return self.at(time, level)

    def at(self, time, noise_level):
        """The points of these noise levels [S + 1] whose network is fed these times [S], on whatever scale they are."""
        level = checked_levels("noise_level", noise_level)
        s = level[:-1]
        alpha = (1 + s.square()).rsqrt()
        p_x, p_m = _VIEWED[self.process.prediction](s, alpha)
        return Nodes(torch.as_tensor(time, device="cpu"), torch.ones_like(level), level, p_x, p_m, alpha)

    def _places(self, log_level):
        """Where in the table a log noise level lies: fractional, or the nearest, and within its ends."""
        table = self._log_levels
        if self.quantize:
            return (log_level[:, None] - table).abs().argmin(1).double()
        low = (torch.searchsorted(table, log_level, right=True) - 1).clamp(0, max(len(table) - 2, 0))
        high = (low + 1).clamp(max=len(table) - 1)
        width = (table[high] - table[low]).clamp(min=torch.finfo(torch.float64).tiny)
        return low + ((log_level - table[low]) / width).clamp(0, 1)


# x0 = p_x * x + p_m * m, of x = x_0 + s * eps, where the network saw alpha * x.
_VIEWED = {
    "eps": lambda s, alpha: (torch.ones_like(s), -s),
    "x0": lambda s, alpha: (torch.zeros_like(s), torch.ones_like(s)),
    "v": lambda s, alpha: (alpha.square(), -s * alpha),
    "score": lambda s, alpha: (torch.ones_like(s), s.square() * alpha),
}


def _interpolated(places, table):
    low = places.floor().clamp(max=len(table) - 1)
    high = (low + 1).clamp(max=len(table) - 1)
    return table[low.long()] + (places - low) * (table[high.long()] - table[low.long()])
