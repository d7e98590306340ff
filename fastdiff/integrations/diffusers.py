"""diffusers' schedulers with our plans for steps: built `from_config` of the originals, for its own pipelines.

    pipeline.scheduler = FastDDIMScheduler.from_config(pipeline.scheduler.config)

They are the originals (config, timesteps, add_noise) but for `step`, which is one row of a plan; noise is drawn from
`generator` as there. `sampler` makes a `fastdiff.Sampler` of a pipeline.
"""

import os

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from ..samplers import Sampler
from .diffusers_plans import PlanRun, clip_of, ddim_plan, ddpm_plan, multistep_plan, process_of

__all__ = ["FastDDIMScheduler", "FastDDPMScheduler", "FastDPMSolverMultistepScheduler", "sampler"]


class FastDDPMScheduler(DDPMScheduler):
    """`diffusers.DDPMScheduler` on rows of `fastdiff.samplers.ddpm`."""

    def set_timesteps(self, *arguments, **options):
        super().set_timesteps(*arguments, **options)
        self._run = None

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """x_{t-1} of the listed timestep before; noise is drawn where t > 0. See the original for arguments."""
        if getattr(self, "_run", None) is None:
            self._run = PlanRun(ddpm_plan(self), self.config)
            self._row = {t: row for row, t in enumerate(self.timesteps.tolist())}
        noise = _noise(model_output, sample, generator) if timestep > 0 else None
        if self.variance_type == "learned":  # the variance itself
            mean, variance = model_output.split(sample.shape[1], 1)
            model_output = torch.cat([mean, variance.log()], 1)
        before, x0 = self._run.step(self._row[int(timestep)], sample, model_output, noise)
        if not return_dict:
            return before, x0
        return DDPMSchedulerOutput(prev_sample=before, pred_original_sample=x0)


class FastDDIMScheduler(DDIMScheduler):
    """`diffusers.DDIMScheduler` on rows of `fastdiff.samplers.ddim`, each from t to t - T // S as there."""

    def set_timesteps(self, *arguments, **options):
        super().set_timesteps(*arguments, **options)
        self._runs = {}

    def step(
        self, model_output, timestep, sample, eta=0.0, use_clipped_model_output=False, generator=None,
        variance_noise=None, return_dict=True,
    ):  # fmt: skip
        """x at t - T // S; noise is drawn where eta > 0. See the original for arguments."""
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step")
        if variance_noise is not None and generator is not None:
            raise ValueError("variance_noise must be None where generator is given, got both")
        key = float(eta), bool(use_clipped_model_output)
        if key not in self._runs:
            self._runs[key] = PlanRun(ddim_plan(self, *key), self.config)
            self._row = {t: row for row, t in enumerate(self.timesteps.tolist())}
        noise = variance_noise
        if eta > 0 and noise is None:
            noise = _noise(model_output, sample, generator)
        before, x0 = self._runs[key].step(self._row[int(timestep)], sample, model_output, noise)
        if not return_dict:
            return before, x0
        return DDIMSchedulerOutput(prev_sample=before, pred_original_sample=x0)


class FastDPMSolverMultistepScheduler(DPMSolverMultistepScheduler):
    """`diffusers.DPMSolverMultistepScheduler` on rows of `dpmpp_2m`, `dpmpp_3m`, `dpm_multistep` and their kin."""

    def set_timesteps(self, *arguments, **options):
        super().set_timesteps(*arguments, **options)
        self._run = None

    def step(self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True):
        """x at the next noise level; noise is drawn at every step of an sde algorithm. See the original for arguments.

        A run that begins later, as image to image does, begins with the first order.
        """
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step")
        if self.step_index is None:
            self._init_step_index(timestep)
        if getattr(self, "_run", None) is None:
            self._first = self.step_index
            self._run = PlanRun(multistep_plan(self, self._first), self.config)
        noise = None
        if self.config.algorithm_type.startswith("sde"):
            noise = _noise(model_output, sample, generator) if variance_noise is None else variance_noise
        before, _ = self._run.step(self.step_index - self._first, sample, model_output, noise)
        self._step_index += 1
        return SchedulerOutput(prev_sample=before) if return_dict else (before,)


def sampler(pipeline_or_folder, **options):
    """`fastdiff.Sampler` of a pipeline's unet with its scheduler's process, solver and clip; options: the Sampler's.

    pipeline_or_folder: a pipeline with `unet` and `scheduler`, or what its `from_pretrained` takes. Solvers: "ddpm" of
    DDPMScheduler, "dpmpp_2m" of DPMSolverMultistepScheduler, "ddim" of all others. Samples of latent pipelines are
    latents.
    """
    pipeline = pipeline_or_folder
    if isinstance(pipeline, (str, os.PathLike)):
        pipeline = DiffusionPipeline.from_pretrained(pipeline)
    scheduler, unet = pipeline.scheduler, pipeline.unet
    if not hasattr(unet, "sample_shape") and isinstance(getattr(unet.config, "sample_size", None), int):
        unet.sample_shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    solver = "ddim"
    if isinstance(scheduler, DDPMScheduler):
        solver = "ddpm"
    elif isinstance(scheduler, DPMSolverMultistepScheduler):
        solver = "dpmpp_2m"
    chosen = {"solver": solver, "clip": clip_of(scheduler.config), **options}
    return Sampler(unet, process_of(scheduler), **chosen)


def _noise(model_output, sample, generator):
    """Of the sample's shape, from the generator or a list of one a sample, as diffusers draws it."""
    noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=model_output.dtype)
    return noise.to(sample.dtype)
