"""What all processes in continuous time share: dx = drift(t) x dt + diffusion(t) dw."""

import math
import numbers
from typing import NamedTuple

import torch

from .. import ops
from . import prediction as predictions
from .nodes import Nodes

KINDS = ("eps", "score", "x0", "v")


class Marginal(NamedTuple):
    """Scales of q(x_t | x_0) at some times."""

    alpha: torch.Tensor
    sigma: torch.Tensor


class ContinuousProcess:
    """q(x_t | x_0) = N(alpha(t) * x_0, sigma(t)^2) for real t, growing from t_min to t_max.

    A subclass gives, for a number or any tensor of times, in float64 where the tensor lies: alpha, sigma, drift,
    diffusion, and label, what the network is fed; and time_at, the inverse of noise_level = sigma / alpha.

    Args:
        prediction: what the network returns: "eps", "score" = -eps / sigma, "x0", or "v" = alpha * eps - sigma * x_0.
        t_min, t_max: where the network is called last and first; a run goes on from t_min to clean data.

    Attributes: these three; prior_std, the nominal deviation of x at t_max; t_end, the time of clean data;
    num_timesteps, of a run that is not told.
    """

    prior_std = 1.0
    t_end = 0.0
    num_timesteps = 1000

    def __init__(self, prediction, t_min, t_max=1.0):
        if prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {prediction!r}")
        if not self.t_end < t_min < t_max:
            raise ValueError(f"t_min must be in ({self.t_end:g}, {t_max:g}), got {t_min}")
        self.prediction, self.t_min, self.t_max = prediction, float(t_min), float(t_max)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def marginal(self, t):
        return Marginal(self.alpha(t), self.sigma(t))

    def noise_level(self, t):
        """sigma / alpha."""
        return self.sigma(t) / self.alpha(t)

    def to_x0(self, t):
        """(p_x, p_m) of x0 = p_x * x_t + p_m * model_output, like t."""
        return predictions.to_x0(self.prediction, self.marginal(t))

    def to_eps(self, t):
        """(e_x, e_m) of eps = e_x * x_t + e_m * model_output, like t."""
        return predictions.to_eps(self.prediction, self.marginal(t))

    def line(self, t):
        """(a, b) of model_output = a * x_0 + b * eps, like t."""
        return predictions.line(self.prediction, self.marginal(t))

    def c_in(self, t):
        """The network is fed c_in * x_t."""
        return torch.ones_like(precise(t))

    def flow(self, t):
        """(of_x, of_x0) of the probability-flow ODE dx/dt = of_x * x + of_x0 * x0, where x0 = E[x_0 | x_t].

        of_x = drift + diffusion^2 / (2 sigma^2) and of_x0 = -alpha * diffusion^2 / (2 sigma^2): Song et al. 2021,
        equation 13, with score = (alpha * x0 - x) / sigma^2.
        """
        rate = self.diffusion(t) ** 2 / (2 * self.sigma(t) ** 2)
        return self.drift(t) + rate, -rate * self.alpha(t)

    def times(self, timesteps=None):
        """The times at which a run calls the network, float64 [S], decreasing.

        timesteps: their number S, evenly spaced from t_max to t_min as in score_sde; or the times themselves, after
        t_end and up to t_max; or `Nodes`; None: num_timesteps of them.
        """
        if isinstance(timesteps, Nodes):
            return self.time_at(timesteps.noise_level[:-1])
        timesteps = self.num_timesteps if timesteps is None else timesteps
        if isinstance(timesteps, numbers.Integral):
            if isinstance(timesteps, bool) or timesteps < 1:
                raise ValueError(f"timesteps must be at least 1, got {timesteps}")
            return torch.linspace(self.t_max, self.t_min, int(timesteps), dtype=torch.float64, device="cpu")
        try:
            times = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu").detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"timesteps must be times or their number, got {timesteps!r}") from error
        inside = times.dim() == 1 and len(times) > 0 and not ((times <= self.t_end) | self._outside(times)).any()
        if not inside or (times.diff() >= 0).any():
            raise ValueError(f"timesteps must be decreasing times in {self._range()}, got {times.tolist()}")
        return times

    def nodes(self, timesteps=None):
        """`Nodes` of the run through `times(timesteps)` and on to clean data, alpha = 1 and sigma = 0."""
        if isinstance(timesteps, Nodes):
            return timesteps
        t = self.times(timesteps)
        clean = torch.ones(1, dtype=torch.float64, device="cpu")
        alpha, sigma = torch.cat([self.alpha(t), clean]), torch.cat([self.sigma(t), 0 * clean])
        return Nodes(self.label(t), alpha, sigma, *self.to_x0(t), self.c_in(t))

    def q_sample(self, x_start, t, noise=None, **options):
        """x_t = alpha(t) * x_start + sigma(t) * noise, one fused pass; uint8 x_start is scaled to [-1, 1] first.

        x_start [B, C, *]; t [B], floating, on x_start's device. noise and options are those of `fastdiff.ops.q_sample`.
        """
        if not isinstance(x_start, torch.Tensor) or x_start.dim() < 1:
            raise TypeError(f"x_start must be a tensor [B, C, *], got {type(x_start).__name__}")
        t = self._checked(t, len(x_start))
        dtype = options.get("dtype") or x_start.dtype
        precision = torch.float64 if dtype is torch.float64 else torch.float32
        samples = torch.arange(len(t), device=t.device)  # every sample has a table entry of its own
        alpha, sigma = self.alpha(t).to(precision), self.sigma(t).to(precision)
        return ops.q_sample(x_start, samples, alpha, sigma, noise, **options)

    def predict_x0(self, x_t, t, model_output):
        """x0 = p_x(t) * x_t + p_m(t) * model_output, not clipped. t [B] floating. Differentiable."""
        return self._combine(t, self.to_x0, x_t=x_t, model_output=model_output)

    def predict_eps(self, x_t, t, model_output):
        """eps = (x_t - alpha * x0) / sigma from the model's output; all else as in `predict_x0`."""
        return self._combine(t, self.to_eps, x_t=x_t, model_output=model_output)

    def target(self, x_start, t, noise):
        """What the network should return at x_t = alpha * x_start + sigma * noise; all else as in `predict_x0`."""
        return self._combine(t, self.line, x_start=x_start, noise=noise)

    def prior_log_prob(self, z):
        """log N(z; 0, prior_std^2) in nats, [B]; z [B, *]. What likelihoods take the end of the flow to be."""
        squares = (z / self.prior_std).square().flatten(1).sum(1)
        return -z[0].numel() * (math.log(self.prior_std) + math.log(2 * math.pi) / 2) - squares / 2

    def _combine(self, t, coefficients, **tensors):
        first, second, precision = checked_pair(**tensors)
        shape = (-1, *(1,) * (first.dim() - 1))
        a, b = (value.to(precision).reshape(shape) for value in coefficients(self._checked(t, len(first))))
        return a * first + b * second

    def _checked(self, t, B):
        """t in float64; times outside the process are an error on the CPU and NaN on a GPU."""
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.shape != (B,):
            got = f"{t.dtype} {list(t.shape)}" if isinstance(t, torch.Tensor) else type(t).__name__
            raise ValueError(f"t must be floating of shape [{B}], got {got}")
        outside = self._outside(t)
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and outside.any():
            raise ValueError(f"t must be in {self._range()}, got {t[outside][0].item()}")
        return precise(t).masked_fill(outside, torch.nan)

    def _outside(self, t):
        past = 1e-6 * abs(self.t_max)  # float32 times may round past t_max
        return ~((t >= self.t_end) & (t <= self.t_max + past) & (self.sigma(t) > 0))

    def _range(self):
        return f"({self.t_end:g}, {self.t_max:g}]"  # with t_end itself where sigma is positive there, as in VE


def checked_pair(**tensors):
    """The two tensors and the dtype of their coefficients: float64 where one is, else float32."""
    (_, first), (_, second) = tensors.items()
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor, got {getattr(value, 'dtype', type(value).__name__)}")
        if value.shape != first.shape or value.dim() < 1:
            raise ValueError(f"{name} must have shape {list(first.shape)}, got {list(value.shape)}")
    return first, second, torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32


def precise(t, device=None):
    """t as a tensor of float64, float32 on devices that have no float64; on `device` where it is a number."""
    device = t.device if isinstance(t, torch.Tensor) else torch.device(device or "cpu")
    return torch.as_tensor(t, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
