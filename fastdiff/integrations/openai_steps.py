"""Reverse steps and their loops, under OpenAI's names: rows of the plans `ddpm`, `ddim` and `ddim_reverse`."""

import torch
from tqdm.auto import tqdm

from .. import ops
from ..samplers import ddim, ddim_reverse, ddpm


class Steps:
    """Methods of `GaussianDiffusion` in terms of its process."""

    @torch.no_grad()
    def p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        """{"sample", "pred_xstart"}: x_{t-1} ~ p(x_{t-1} | x_t), without noise where t = 0; cond_fn moves the mean."""
        output = self._call(model, x, t, model_kwargs)
        noise = torch.randn_like(x)
        extra = None if cond_fn is None else self._gradient(cond_fn, x, t, model_kwargs)
        return self._step("ddpm", x, t, output, clip_denoised, denoised_fn, noise, extra)

    @torch.no_grad()
    def ddim_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0):
        """{"sample", "pred_xstart"} of DDIM; cond_fn moves the score. Noise is drawn whatever eta."""
        output = self._call(model, x, t, model_kwargs)
        extra = None if cond_fn is None else self._gradient(cond_fn, x, t, model_kwargs)
        noise = torch.randn_like(x)
        return self._step("ddim", x, t, output, clip_denoised, denoised_fn, noise, extra, eta)

    @torch.no_grad()
    def ddim_reverse_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0):
        """{"sample", "pred_xstart"}: x_{t+1} of DDIM's deterministic path."""
        if eta != 0.0:
            raise AssertionError(f"eta must be 0, for the path back is deterministic, got {eta}")
        output = self._call(model, x, t, model_kwargs)
        return self._step("ddim_reverse", x, t, output, clip_denoised, denoised_fn, None, None)

    def p_sample_loop(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False,
    ):  # fmt: skip
        """The last sample of `p_sample_loop_progressive`."""
        options = dict(clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn, model_kwargs=model_kwargs)
        return _last(self._loop(self.p_sample, model, shape, noise, device, progress, options))

    def p_sample_loop_progressive(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False,
    ):  # fmt: skip
        """Yields p_sample's results from t = T - 1 to 0, of noise [B, C, *], drawn where it is None."""
        options = dict(clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn, model_kwargs=model_kwargs)
        yield from self._loop(self.p_sample, model, shape, noise, device, progress, options)

    def ddim_sample_loop(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, eta=0.0,
    ):  # fmt: skip
        """The last sample of `ddim_sample_loop_progressive`."""
        options = dict(clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn, model_kwargs=model_kwargs)
        return _last(self._loop(self.ddim_sample, model, shape, noise, device, progress, {**options, "eta": eta}))

    def ddim_sample_loop_progressive(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, eta=0.0,
    ):  # fmt: skip
        """Yields ddim_sample's results from t = T - 1 to 0."""
        options = dict(clip_denoised=clip_denoised, denoised_fn=denoised_fn, cond_fn=cond_fn, model_kwargs=model_kwargs)
        yield from self._loop(self.ddim_sample, model, shape, noise, device, progress, {**options, "eta": eta})

    def _loop(self, step, model, shape, noise, device, progress, options):
        device = next(model.parameters()).device if device is None else device
        x = torch.randn(*shape, device=device) if noise is None else noise
        steps = reversed(range(self.num_timesteps))
        for t in tqdm(list(steps)) if progress else steps:
            result = step(model, x, torch.full((shape[0],), t, device=device), **options)
            yield result
            x = result["sample"]

    def _step(self, solver, x, t, output, clip_denoised, denoised_fn, noise, extra, eta=0.0):
        """A row of the solver's plan for each sample, with the network's output or, where it is changed, x0 itself."""
        changed, result = denoised_fn is not None, {}
        denoised = output
        if changed:
            x0 = self._pred_xstart(output, x, t, False, denoised_fn).to(output.dtype)
            denoised = torch.cat([x0, output[:, x.shape[1] :]], 1)
        row = t if solver == "ddim_reverse" else self.num_timesteps - 1 - t
        for name in ("sample", "pred_xstart"):
            # The mean of x_{t-1} is the output itself where that is what the network predicts.
            raw = solver == "ddpm" and self.process.prediction == "xprev" and name == "sample"
            table = self._table(name, solver, clip_denoised, eta, changed and not raw, extra is not None, x)
            m = output if raw else denoised
            result[name] = ops.reverse_step(x, m, table, row, noise=noise, extra=extra)
        return result

    def _table(self, name, solver, clip_denoised, eta, changed, guided, x):
        """The plan's rows, or those of its estimates, on x's device; made once."""
        precision = torch.float64 if x.dtype is torch.float64 else torch.float32
        key = name, solver, bool(clip_denoised), eta, changed, guided, x.device, precision
        if key not in self._plans:
            clip = 1.0 if clip_denoised else None
            plan = self._plan(solver, clip, eta)
            if changed:
                plan = plan.replace(p_x=0.0, p_m=1.0)
            if guided:
                plan = plan.replace(**self._guidance(solver))
            plan = plan if name == "sample" else plan.estimates()
            self._plans[key] = plan.table(x.device, precision)
        return self._plans[key]

    def _plan(self, solver, clip, eta):
        if solver == "ddpm":
            return ddpm(self.process, clip=clip)
        if solver == "ddim":
            return ddim(self.process, clip=clip, eta=eta)
        return ddim_reverse(self.process, clip=clip, to_noise=True)

    def _guidance(self, solver):
        """What a classifier's gradient adds: sigma^2 / alpha to x0 in the score's form, the variance to the mean."""
        if solver == "ddim":
            return {"g_0": (self.process.sigma.square() / self.process.alpha).flip(0)}
        if self.process.model_variance is None:
            return {"g_v": 1.0}
        return {"g_x": self.process.model_variance.flip(0)}


def _last(results):
    for result in results:
        final = result["sample"]
    return final
