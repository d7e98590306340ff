"""The discrete variance-exploding process of NCSN: a ladder of noise levels, the noisiest first."""

import numbers

import torch

from .. import ops
from . import prediction as predictions
from . import spacing
from .continuous import KINDS, Marginal, checked_pair
from .nodes import Nodes


class NCSNProcess:
    """q(x_t | x_0) = N(x_0, sigma_t^2), sigma geometric from sigma_max at t = 0 to sigma_min at t = L - 1.

    The network is fed the level's index t, 0 being the noisiest as in all of Song's code, and returns the score. NCSN:
    10 levels from 1 to 0.01; NCSNv2 on CIFAR-10: 232 from 50; score_sde's discrete VE networks: 1000 from 50 (their
    label is round((1 - t) 999)). NCSNv2 divides its output by sigma inside the network; an undivided -eps is
    prediction "eps" of its negative.

    Args:
        levels: their number L, at least 2, or the sigmas themselves, decreasing, [L].
        sigma_max, sigma_min: used with a number.
        prediction: "score", "eps", "x0" or "v".

    Attributes: sigma, alpha (all 1), p_x, p_m (x0 = p_x * x + p_m * model_output), target_x0, target_eps (what the
    network should return of x_0 and noise), all [L] float64; timestep_map int64 [L], the indices that the network knows
    the levels by; num_timesteps = L; prior_std = sigma_0; prediction.
    Source: Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019, section 3;
    "Improved techniques for training score-based generative models", 2020.
    """

    def __init__(self, levels=10, sigma_max=1.0, sigma_min=0.01, *, prediction="score", timestep_map=None):
        if prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {prediction!r}")
        if isinstance(levels, numbers.Integral):
            if levels < 2:
                raise ValueError(f"levels must be at least 2, got {levels}")
            if not 0 < sigma_min < sigma_max < float("inf"):
                raise ValueError(f"sigma_min must be in (0, sigma_max), got {sigma_min} and sigma_max {sigma_max}")
            ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64, device="cpu").log().tolist()
            levels = torch.linspace(*ends, int(levels), dtype=torch.float64, device="cpu").exp()
        self.sigma = torch.as_tensor(levels, dtype=torch.float64, device="cpu").detach().clone()
        falling = self.sigma.dim() == 1 and len(self.sigma) > 0 and bool((self.sigma.diff() < 0).all())
        if not falling or not (self.sigma > 0).all() or not self.sigma.isfinite().all():
            raise ValueError(f"levels must be decreasing positive numbers, got {self.sigma.tolist()}")
        self.prediction, self.num_timesteps = prediction, len(self.sigma)
        self.alpha, self.prior_std = torch.ones_like(self.sigma), self.sigma[0].item()
        self.p_x, self.p_m = predictions.to_x0(prediction, Marginal(self.alpha, self.sigma))
        self.target_x0, self.target_eps = predictions.line(prediction, Marginal(self.alpha, self.sigma))
        self.timestep_map = torch.arange(self.num_timesteps, device="cpu") if timestep_map is None else timestep_map
        self._device_tables = {}

    def __repr__(self):
        ends = f"sigma {self.sigma[0]:g} to {self.sigma[-1]:g}"
        return f"{type(self).__name__}({self.num_timesteps} levels, {ends}, prediction={self.prediction!r})"

    def respace(self, timesteps):
        """The process of the retained levels: distinct indices in any order, or their number, evenly spaced."""
        kept = spacing.retained(self.num_timesteps, timesteps)
        return type(self)(self.sigma[kept], prediction=self.prediction, timestep_map=self.timestep_map[kept])

    def nodes(self, timesteps=None):
        """`Nodes` of the run through the retained levels and on to clean data."""
        p = self if timesteps is None else self.respace(timesteps)
        clean = torch.ones(1, dtype=torch.float64, device="cpu")
        alpha, sigma = torch.cat([p.alpha, clean]), torch.cat([p.sigma, 0 * clean])
        return Nodes(p.timestep_map, alpha, sigma, p.p_x, p.p_m, torch.ones_like(p.sigma))

    def q_sample(self, x_start, t, noise=None, **options):
        """x_t = x_start + sigma[t] * noise. Arguments and options are those of `fastdiff.ops.q_sample`."""
        dtype, device = options.get("dtype") or getattr(x_start, "dtype", None), getattr(x_start, "device", "cpu")
        precision = torch.float64 if dtype is torch.float64 else torch.float32
        alpha, sigma = (self.table(name, device, precision) for name in ("alpha", "sigma"))
        return ops.q_sample(x_start, t, alpha, sigma, noise, **options)

    def predict_x0(self, x_t, t, model_output):
        """x0 = p_x[t] * x_t + p_m[t] * model_output, not clipped. t int64 [B]. Differentiable."""
        return self._combine(t, "p_x", "p_m", x_t=x_t, model_output=model_output)

    def target(self, x_start, t, noise):
        """What the network should return at x_t = x_start + sigma * noise: -noise / sigma for the score."""
        return self._combine(t, "target_x0", "target_eps", x_start=x_start, noise=noise)

    def table(self, name, device, dtype=torch.float32):
        """Attribute `name`, [L], rounded to `dtype` on `device`; made once."""
        key = (name, torch.device(device), dtype)
        if key not in self._device_tables:
            with torch.inference_mode(False):  # else it could not be used for training later
                self._device_tables[key] = getattr(self, name).to(device, dtype, copy=True)
        return self._device_tables[key]

    def __getstate__(self):
        return {**self.__dict__, "_device_tables": {}}

    def _combine(self, t, a, b, **tensors):
        first, second, precision = checked_pair(**tensors)
        if not isinstance(t, torch.Tensor) or t.dtype is not torch.int64 or t.shape != first.shape[:1]:
            got = f"{t.dtype} {list(t.shape)}" if isinstance(t, torch.Tensor) else type(t).__name__
            raise ValueError(f"t must be int64 of shape {list(first.shape[:1])}, got {got}")
        outside = (t < 0) | (t >= self.num_timesteps)
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and outside.any():
            raise IndexError(f"t must be in [0, {self.num_timesteps}), got {t[outside][0].item()}")
        index, shape = t.clamp(0, self.num_timesteps - 1), (-1, *(1,) * (first.dim() - 1))
        tables = (self.table(name, t.device, precision) for name in (a, b))
        a, b = (table[index].masked_fill(outside, torch.nan).reshape(shape) for table in tables)
        return a * first + b * second
