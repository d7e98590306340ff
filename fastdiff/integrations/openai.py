"""improved_diffusion's and guided_diffusion's diffusion objects, under their names: change one import.

    from fastdiff.integrations.openai import create_gaussian_diffusion

Noise comes from torch's default generator in the originals' order: the same seed gives the same image, up to rounding.
Steps are rows of plans, losses and bounds the fused kernels; so `p_sample` and its kin do not carry gradients, while
`p_mean_variance` and `training_losses` do.
"""

import torch

from ..processes import GaussianProcess, spacing
from .openai_kinds import (
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from .openai_losses import Losses
from .openai_steps import Steps

__all__ = [
    "GaussianDiffusion", "LossType", "ModelMeanType", "ModelVarType", "SpacedDiffusion", "betas_for_alpha_bar",
    "create_gaussian_diffusion", "get_named_beta_schedule", "space_timesteps",
]  # fmt: skip

_ARRAYS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


class GaussianDiffusion(Steps, Losses):
    """`fastdiff.GaussianProcess` under the methods of OpenAI's class of this name.

    Args:
        betas: [T].
        model_mean_type, model_var_type, loss_type: the enums of this module, or of the originals.
        rescale_timesteps: networks are fed t * 1000 / T as a float instead of the integer t.

    Attributes: those of the original (float64 NumPy arrays [T] of its names, num_timesteps and the arguments), and
    `process`. Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, their code.
    """

    def __init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False):
        self.model_mean_type = ModelMeanType[model_mean_type.name]
        self.model_var_type = ModelVarType[model_var_type.name]
        self.loss_type, self.rescale_timesteps = LossType[loss_type.name], rescale_timesteps
        process = GaussianProcess(betas, self.model_mean_type.prediction, self.model_var_type.variance)
        self.original_num_steps = process.num_timesteps
        self._set_process(process)

    def _set_process(self, process):
        self.process, self.num_timesteps, self._plans = process, process.num_timesteps, {}
        for name in _ARRAYS:
            setattr(self, name, getattr(process, name).numpy())
        self.alphas_cumprod_next = torch.cat([process.alphas_cumprod[1:], torch.zeros(1)]).numpy()
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = process.alpha.numpy(), process.sigma.numpy()
        self.log_one_minus_alphas_cumprod = process.sigma.square().log().numpy()
        self.sqrt_recip_alphas_cumprod = (1 / process.alpha).numpy()
        self.sqrt_recipm1_alphas_cumprod = process.noise_level.numpy()

    def q_mean_variance(self, x_start, t):
        """(mean, variance, log variance) of q(x_t | x_0) = N(alpha x_0, sigma^2), each like x_start."""
        sigma = self._at("sigma", t, x_start)
        variance = sigma.square().expand(x_start.shape)
        return self._at("alpha", t, x_start) * x_start, variance, variance.log()

    def q_sample(self, x_start, t, noise=None):
        """alpha_t x_0 + sigma_t noise; None draws it."""
        return self.process.q_sample(x_start, t, torch.randn_like(x_start) if noise is None else noise)

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """(mean, variance, clipped log variance) of q(x_{t-1} | x_t, x_0), each like x_t."""
        mean, *tables = self.process.posterior(x_start, x_t, t)
        return mean, *(value.expand(x_t.shape) for value in tables)

    def p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None):
        """{"mean", "variance", "log_variance", "pred_xstart"} of p(x_{t-1} | x_t), each like x."""
        output = self._call(model, x, t, model_kwargs)
        pred_xstart = self._pred_xstart(output, x, t, clip_denoised, denoised_fn)
        channels, process = x.shape[1], self.process
        if process.model_variance is None:
            l_0, l_1 = (self._at(name, t, x) for name in ("l_0", "l_1"))
            log_variance = l_0 + l_1 * output[:, channels:]
            variance = log_variance.exp()
        else:
            names = ("model_variance", "model_log_variance")
            variance, log_variance = (self._at(name, t, x).expand(x.shape) for name in names)
        raw = process.prediction == "xprev"
        mean = output[:, :channels] if raw else process.posterior(pred_xstart, x, t).mean
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def condition_mean(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """mean + variance * cond_fn(x, t). Source: Dhariwal and Nichol 2021, algorithm 1."""
        return p_mean_var["mean"] + p_mean_var["variance"] * self._gradient(cond_fn, x, t, model_kwargs)

    def condition_score(self, cond_fn, p_mean_var, x, t, model_kwargs=None):
        """p_mean_var of eps - sigma * cond_fn(x, t): x_0 moves by sigma^2 / alpha * cond_fn, and is not clipped again.

        Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021, algorithm 2.
        """
        weight = self._at("sigma", t, x).square() / self._at("alpha", t, x)
        pred_xstart = p_mean_var["pred_xstart"] + weight * self._gradient(cond_fn, x, t, model_kwargs)
        return {**p_mean_var, "pred_xstart": pred_xstart, "mean": self.process.posterior(pred_xstart, x, t).mean}

    def _pred_xstart(self, output, x, t, clip_denoised, denoised_fn=None):
        pred_xstart = self.process.predict_x0(x, t, output[:, : x.shape[1]])
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        return pred_xstart.clamp(-1, 1) if clip_denoised else pred_xstart

    def _predict_xstart_from_eps(self, x_t, t, eps):
        return (x_t - self._at("sigma", t, x_t) * eps) / self._at("alpha", t, x_t)

    def _predict_eps_from_xstart(self, x_t, t, pred_xstart):
        return (x_t - self._at("alpha", t, x_t) * pred_xstart) / self._at("sigma", t, x_t)

    def _call(self, model, x, t, model_kwargs):
        return model(x, self._scale_timesteps(t), **(model_kwargs or {}))

    def _gradient(self, cond_fn, x, t, model_kwargs):
        return cond_fn(x, self._scale_timesteps(t), **(model_kwargs or {})).to(x.dtype)

    def _scale_timesteps(self, t):
        """What networks are fed for the steps t: the original timesteps, scaled once at most."""
        t = self.process.table("timestep_map", t.device, torch.int64)[t]
        return t.float() * (1000.0 / self.original_num_steps) if self.rescale_timesteps else t

    def _at(self, name, t, like):
        """A table's entries [B, 1, ...]; t outside [0, T) is an error, as of the original's arrays."""
        precision = torch.float64 if like.dtype is torch.float64 else torch.float32
        return self.process.table(name, t.device, precision)[t].reshape(-1, *(1,) * (like.dim() - 1))


class SpacedDiffusion(GaussianDiffusion):
    """The diffusion of the retained timesteps, whose networks are fed the original ones.

    Args:
        use_timesteps: the retained, as `space_timesteps` gives them.
        kwargs: those of GaussianDiffusion, betas being the original's.
    """

    def __init__(self, use_timesteps, **kwargs):
        super().__init__(**kwargs)
        self.use_timesteps = set(use_timesteps)
        self._set_process(self.process.respace(sorted(self.use_timesteps)))
        self.timestep_map = self.process.timestep_map.tolist()


def space_timesteps(num_timesteps, section_counts):
    """The retained timesteps as a set: of "250", "10,15,20", "ddim50", or a list of counts."""
    return set(spacing.sections(num_timesteps, section_counts).tolist())


def create_gaussian_diffusion(
    *, steps=1000, learn_sigma=False, sigma_small=False, noise_schedule="linear", use_kl=False, predict_xstart=False,
    rescale_timesteps=False, rescale_learned_sigmas=False, timestep_respacing="",
):  # fmt: skip
    """A SpacedDiffusion by the names of OpenAI's flags."""
    fixed = ModelVarType.FIXED_SMALL if sigma_small else ModelVarType.FIXED_LARGE
    mse = LossType.RESCALED_MSE if rescale_learned_sigmas else LossType.MSE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=ModelMeanType.START_X if predict_xstart else ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=LossType.RESCALED_KL if use_kl else mse,
        rescale_timesteps=rescale_timesteps,
    )
