"""The discrete variance-preserving process of DDPM: its tables, its posterior, and what a prediction means in it."""

from typing import NamedTuple

import torch

from .. import ops
from . import likelihood, sigma, spacing
from . import prediction as predictions
from . import variance as variances
from .checks import checked_betas, checked_map
from .nodes import Nodes


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0): mean like x_t, the other two [B, 1, ...]."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance_clipped: torch.Tensor


class GaussianProcess:
    """q(x_t | x_0) = N(alpha_t * x_0, sigma_t^2), alpha_t^2 = prod_{s <= t} (1 - betas_s) = 1 - sigma_t^2, t = 0..T-1.

    Args:
        betas: [T], any array of numbers in (0, 1]; kept in float64.
        prediction: what the network returns: "eps", "x0", "v" = alpha * eps - sigma * x_0, "score" = -eps / sigma, or
            "xprev", the posterior mean of x_{t-1}.
        variance: of a reverse step: "fixed_small", the posterior's; "fixed_large", betas; or that of a network of 2C
            channels [mean, v]: "learned", exp(v), or "learned_range", fixed_large^f fixed_small^(1-f), f = (v + 1) / 2.
        timestep_map: int64 [T], the timesteps that the network knows these steps by; None: 0..T-1.

    Attributes, all [T], on the CPU and float64 unless said:
        betas, alphas_cumprod = alpha^2, alphas_cumprod_prev (1 at t = 0), alpha, sigma,
        snr = alpha^2 / sigma^2, logsnr, noise_level = sigma / alpha,
        posterior_mean_coef1 (of x_0), posterior_mean_coef2 (of x_t), posterior_variance (0 at t = 0),
        posterior_log_variance_clipped: its log, t = 0 taking the value of t = 1 (log betas_0 where T = 1),
        model_variance, model_log_variance: of a reverse step by `variance`; None where the network gives it,
        l_0, l_1: its log variance there is l_0 + l_1 * v; 0 where it is fixed,
        std: sqrt(model_variance), 1 where it is learned; 0 at t = 0, whose step adds no noise,
        p_x, p_m, e_x, e_m: x0 = p_x * x_t + p_m * model_output, eps = e_x * x_t + e_m * model_output,
        target_x0, target_eps: model_output = target_x0 * x_0 + target_eps * eps,
        timestep_map (int64), num_timesteps (int), prediction, variance (str).

    Raises ValueError or TypeError that names the argument; eps, score and xprev are refused where alphas_cumprod
    reaches 0 (zero terminal SNR), since x_0 does not follow from them there.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equations 4, 6, 7 and section 3.2.
    """

    def __init__(self, betas, prediction="eps", variance="fixed_small", *, timestep_map=None):
        if prediction not in predictions.KINDS:
            raise ValueError(f"prediction must be one of {', '.join(predictions.KINDS)}, got {prediction!r}")
        if variance not in variances.KINDS:
            raise ValueError(f"variance must be one of {', '.join(variances.KINDS)}, got {variance!r}")
        self.prediction, self.variance = prediction, variance
        self.betas = checked_betas(betas)
        self.num_timesteps = len(self.betas)
        self.timestep_map = checked_map(timestep_map, self.num_timesteps)
        self._device_tables = {}

        # In logarithms, so that 1 - alphas_cumprod keeps its digits where it is small.
        log_alphas_cumprod = torch.log1p(-self.betas).cumsum(0)
        variance_t = -torch.expm1(log_alphas_cumprod)
        variance_prev = torch.cat([variance_t.new_zeros(1), variance_t[:-1]])
        self.alphas_cumprod = torch.exp(log_alphas_cumprod)
        self.alphas_cumprod_prev = torch.cat([variance_t.new_ones(1), self.alphas_cumprod[:-1]])
        self.alpha, self.sigma = self.alphas_cumprod.sqrt(), variance_t.sqrt()
        self.snr, self.logsnr = self.alphas_cumprod / variance_t, log_alphas_cumprod - variance_t.log()
        self.noise_level = self.sigma / self.alpha

        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / variance_t
        self.posterior_mean_coef2 = variance_prev * (1 - self.betas).sqrt() / variance_t
        self.posterior_variance = self.betas * variance_prev / variance_t
        self.posterior_log_variance_clipped = variances.log_clipped(self.posterior_variance, self.betas)
        tables = variances.tables(variance, self)
        self.model_variance, self.model_log_variance, self.l_0, self.l_1, self.std = tables

        if prediction in predictions.NEEDS_SIGNAL and (self.alphas_cumprod == 0).any():
            raise ValueError(
                f"prediction must be 'v' or 'x0' where alphas_cumprod reaches 0 (zero terminal SNR), got {prediction!r}"
            )
        self.p_x, self.p_m = predictions.to_x0(prediction, self)
        self.e_x, self.e_m = predictions.to_eps(prediction, self)
        self.target_x0, self.target_eps = predictions.line(prediction, self)

    def __repr__(self):
        kind = f"prediction={self.prediction!r}, variance={self.variance!r}"
        return f"{type(self).__name__}({self.num_timesteps} timesteps, {kind})"

    def __getstate__(self):
        return {**self.__dict__, "_device_tables": {}}

    def q_sample(self, x_start, t, noise=None, **options):
        """x_t = alpha[t] * x_start + sigma[t] * noise, one fused pass; uint8 x_start is scaled to [-1, 1] first.

        x_start [B, C, *], t int64 [B], noise like x_start. Options are those of `fastdiff.ops.q_sample`: rng and
        sample_ids instead of noise, flip, dtype and memory_format of the result, return_noise. Coefficients are float32
        whatever the tensors' dtype (float64 where x_t is).
        """
        dtype = options.get("dtype") or getattr(x_start, "dtype", None)
        precision = torch.float64 if dtype is torch.float64 else torch.float32
        device = getattr(x_start, "device", "cpu")
        alpha, sigma = (self.table(name, device, precision) for name in ("alpha", "sigma"))
        return ops.q_sample(x_start, t, alpha, sigma, noise, **options)

    def posterior(self, x_start, x_t, t):
        """q(x_{t-1} | x_t, x_start): mean = posterior_mean_coef1[t] * x_start + posterior_mean_coef2[t] * x_t.

        x_start, x_t [B, C, *]; t int64 [B]. Returns Posterior(mean, variance, log_variance_clipped) in float32, or
        float64 where an input is. Differentiable. Source: Ho et al. 2020, equations 6 and 7.
        """
        mean = self._combine("posterior_mean_coef1", "x_start", x_start, "posterior_mean_coef2", "x_t", x_t, t)
        names = ("posterior_variance", "posterior_log_variance_clipped")
        return Posterior(mean, *(self._at(name, t, mean, mean.dtype) for name in names))

    def predict_x0(self, x_t, t, model_output):
        """x0 = p_x[t] * x_t + p_m[t] * model_output, not clipped; for eps (x_t - sigma * eps) / alpha.

        x_t, model_output [B, C, *]; t int64 [B]. Float32, or float64 where an input is. Differentiable.
        Source: Ho et al. 2020, equation 15, for eps; `fastdiff.processes.prediction` for every kind.
        """
        return self._combine("p_x", "x_t", x_t, "p_m", "model_output", model_output, t)

    def predict_eps(self, x_t, t, model_output):
        """eps = e_x[t] * x_t + e_m[t] * model_output = (x_t - alpha * x0) / sigma; all else as in `predict_x0`."""
        return self._combine("e_x", "x_t", x_t, "e_m", "model_output", model_output, t)

    def target(self, x_start, t, noise):
        """What the network should return at x_t = alpha * x_start + sigma * noise; all else as in `predict_x0`.

        noise for eps, x_start for x0, alpha * noise - sigma * x_start for v, -noise / sigma for score, the posterior
        mean for xprev.
        """
        return self._combine("target_x0", "x_start", x_start, "target_eps", "noise", noise, t)

    def loss(self, model_output, x_start, t, noise=None, **options):
        """mean((m - target)^2) of each sample, [B], target = target_x0[t] * x_start + target_eps[t] * noise.

        One fused pass; options are those of `fastdiff.ops.diffusion_loss`: rng and sample_ids instead of noise, flip,
        weight, sample_weight. model_output [B, C or 2C, *], of which the first C channels count.
        """
        device, precision = _place(model_output)
        target_x0, target_eps = (self.table(name, device, precision) for name in ("target_x0", "target_eps"))
        return ops.diffusion_loss(model_output, x_start, t, target_x0, target_eps, noise, **options)

    def vlb_terms(self, model_output, x_start, x_t, t, *, variance=None, **options):
        """The variational bound's term of each sample at its t, [B], in bits per dimension.

        KL(q(x_{t-1} | x_t, x_start) || p(x_{t-1} | x_t)), at t = 0 the decoder's -log p(x_start | x_t). variance: as in
        `likelihood.vlb_table`; None: the process' own. Options are those of `fastdiff.ops.vlb_terms`: clip, cdf,
        detach_mean, flip, weight, sample_weight.
        """
        device, precision = _place(model_output)
        key = ("vlb", self.variance if variance is None else variance, torch.device(device), precision)
        if key not in self._device_tables:
            with torch.inference_mode(False):
                self._device_tables[key] = likelihood.vlb_table(self, variance).to(device, precision)
        return ops.vlb_terms(model_output, x_start, x_t, t, self._device_tables[key], **options)

    def respace(self, timesteps):
        """The process of the retained timesteps: betas' = 1 - alphas_cumprod / (that of the one retained before).

        timesteps: distinct ints in [0, T) in any order; one int: that many, evenly spaced (`spacing.even`); or a text
        as "10,15,20" or "ddim50" (`spacing.sections`). The network still sees the original timesteps, through
        timestep_map.
        Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 4, equation 19.
        """
        kept = spacing.retained(self.num_timesteps, timesteps)
        # Every step of the process is part of the next retained one.
        following = torch.searchsorted(kept, torch.arange(self.num_timesteps, device="cpu"))
        logs = self.betas.new_zeros(len(kept) + 1).index_add_(0, following, torch.log1p(-self.betas))
        betas = -torch.expm1(logs[:-1])
        return type(self)(betas, self.prediction, self.variance, timestep_map=self.timestep_map[kept])

    def nodes(self, timesteps=None, *, end=None):
        """The points of a run, the noisiest first; its network is fed original timesteps.

        timesteps: as for `respace`; None: all. end: the timestep whose alpha and sigma the run ends at, not above any
        of them; None: clean data. What "xprev" means follows the run's steps, as in the respaced process.
        """
        run = self if timesteps is None else self.respace(timesteps)
        last = torch.tensor([[1.0], [0.0]], dtype=torch.float64, device="cpu")
        if end is not None:
            if isinstance(end, bool) or not 0 <= end < self.num_timesteps:
                raise ValueError(f"end must be in [0, {self.num_timesteps}), got {end}")
            if self.timestep_map[end] > run.timestep_map[0]:
                raise ValueError(f"end must not be above the timestep {run.timestep_map[0]} of the run, got {end}")
            last = torch.stack([self.alpha[end : end + 1], self.sigma[end : end + 1]])
        alpha, sigma_ = (torch.cat([table.flip(0), at]) for table, at in zip((run.alpha, run.sigma), last, strict=True))
        time, p_x, p_m = run.timestep_map.flip(0), run.p_x.flip(0), run.p_m.flip(0)
        return Nodes(time, alpha, sigma_, p_x, p_m, torch.ones_like(p_x))

    def through(self, noise_level):
        """The points of these noise levels [S + 1], falling: at fractional timesteps, linear in log noise level.

        The prediction "xprev" is refused: it means nothing between timesteps.
        """
        view = sigma.SigmaView(self).through(noise_level)
        alpha = (1 + view.sigma.square()).rsqrt()
        return Nodes(view.time, alpha, view.sigma * alpha, view.p_x / alpha[:-1], view.p_m, torch.ones_like(view.p_x))

    def table(self, name, device, dtype=torch.float32):
        """Attribute `name`, [T], rounded to `dtype` on `device`; made once."""
        key = (name, torch.device(device), dtype)
        if key not in self._device_tables:
            # Tables made under inference mode could not be used for training later.
            with torch.inference_mode(False):
                self._device_tables[key] = getattr(self, name).to(device, dtype, copy=True)
        return self._device_tables[key]

    def _combine(self, first_name, first_argument, first, second_name, second_argument, second, t):
        """table[first_name][t] * first + table[second_name][t] * second."""
        for argument, value in ((first_argument, first), (second_argument, second)):
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                got = getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"{argument} must be a floating tensor, got {got}")
            if value.shape != first.shape or value.dim() < 1:
                raise ValueError(f"{argument} must have shape {list(first.shape)}, got {list(value.shape)}")
        dtype = torch.promote_types(first.dtype, second.dtype)
        return self._at(first_name, t, first, dtype) * first + self._at(second_name, t, first, dtype) * second

    def _at(self, name, t, like, dtype):
        """table[name][t] as [B, 1, ...]; t outside [0, T) is an error on the CPU, and NaN on a GPU."""
        if not isinstance(t, torch.Tensor) or t.dtype is not torch.int64 or t.shape != like.shape[:1]:
            got = f"{t.dtype} {list(t.shape)}" if isinstance(t, torch.Tensor) else type(t).__name__
            raise ValueError(f"t must be int64 of shape {list(like.shape[:1])}, got {got}")
        outside = (t < 0) | (t >= self.num_timesteps)
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and outside.any():
            raise IndexError(f"t must be in [0, {self.num_timesteps}), got {t[outside][0].item()}")
        precision = torch.float64 if dtype is torch.float64 else torch.float32
        values = self.table(name, t.device, precision)[t.clamp(0, self.num_timesteps - 1)]
        return torch.where(outside, torch.nan, values).reshape(-1, *(1,) * (like.dim() - 1))


def _place(model_output):
    """Device and precision of the tables that go with it."""
    wide = getattr(model_output, "dtype", None) is torch.float64
    return getattr(model_output, "device", "cpu"), torch.float64 if wide else torch.float32
