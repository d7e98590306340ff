"""Training losses and the variational bound, under OpenAI's names."""

import math

import torch

from .openai_kinds import LossType


class Losses:
    """Methods of `GaussianDiffusion` in terms of its process."""

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        """{"loss"[, "mse", "vb"]}, each [B], differentiable in the network's output.

        mse = mean((m - target)^2), plus with a learned variance vb, the bound's term, whose gradient goes to the
        variance alone; KL losses are the term itself. Bits per dimension.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        if self.loss_type.is_vb():
            terms = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)
            factor = self.num_timesteps if self.loss_type is LossType.RESCALED_KL else 1
            return {"loss": terms["output"] * factor}
        output = self._call(model, x_t, t, model_kwargs)
        mse = self.process.loss(output, x_start, t, noise)
        if self.process.model_variance is not None:
            return {"loss": mse, "mse": mse}
        vb = self.process.vlb_terms(output, x_start, x_t, t, cdf="tanh", detach_mean=True)
        if self.loss_type is LossType.RESCALED_MSE:
            vb = vb * (self.num_timesteps / 1000)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None):
        """{"output": the bound's term [B] in bits per dimension, "pred_xstart"}."""
        output = self._call(model, x_t, t, model_kwargs)
        clip = 1.0 if clip_denoised else None
        terms = self.process.vlb_terms(output, x_start, x_t, t, clip=clip, cdf="tanh")
        return {"output": terms, "pred_xstart": self._pred_xstart(output, x_t, t, clip_denoised)}

    def _prior_bpd(self, x_start):
        """KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, [B]."""
        t = torch.full((len(x_start),), self.num_timesteps - 1, device=x_start.device)
        mean, variance, log_variance = self.q_mean_variance(x_start, t)
        return _mean(variance + mean.square() - 1 - log_variance) / (2 * math.log(2))

    @torch.no_grad()
    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None):
        """{"total_bpd", "prior_bpd": [B], "vb", "xstart_mse", "mse": [B, T], from t = T - 1 to 0}."""
        columns = {"vb": [], "xstart_mse": [], "mse": []}
        for step in reversed(range(self.num_timesteps)):
            t = torch.full((len(x_start),), step, device=x_start.device)
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            terms = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            eps = self._predict_eps_from_xstart(x_t, t, terms["pred_xstart"])
            columns["vb"].append(terms["output"])
            columns["xstart_mse"].append(_mean((terms["pred_xstart"] - x_start).square()))
            columns["mse"].append(_mean((eps - noise).square()))
        columns = {name: torch.stack(values, 1) for name, values in columns.items()}
        prior = self._prior_bpd(x_start)
        return {"total_bpd": columns["vb"].sum(1) + prior, "prior_bpd": prior, **columns}


def _mean(value):
    """Over all but the first dimension."""
    return value.flatten(1).mean(1)
