"""What a whole sampling loop costs beside the model: per step, against diffusers' schedulers in their documented loop.

The model returns a tensor that is there already, so that all of the time is the loop's. A case's number is of the whole
run; divided by the steps of its name it is that of a step.
"""

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, schedules

SHAPE = (1, 3, 8, 8)  # small enough that arithmetic hardly counts
STEPS = 100

# fastdiff's solver and its options; diffusers' scheduler and its own, and what its step is told.
LOOPS = {
    "ddpm": (("ddpm", {}), ("DDPMScheduler", {})),
    "ddim": (("ddim", {}), ("DDIMScheduler", {})),
    "euler": (("euler", {"clip": None}), ("EulerDiscreteScheduler", {})),
    "euler_ancestral": (("euler_ancestral", {"clip": None}), ("EulerAncestralDiscreteScheduler", {})),
    "heun": (("heun", {"clip": None}), ("HeunDiscreteScheduler", {})),
    "dpmpp_2m": (("dpmpp_2m", {"clip": None}), ("DPMSolverMultistepScheduler", {})),
    "unipc": (("unipc", {"clip": None}), ("UniPCMultistepScheduler", {})),
}


def diffusers_loop(name, options, output, device):
    """The denoising loop of diffusers' documentation and pipelines."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(1000, **options)
    scheduler.set_timesteps(STEPS, device=device)

    def loop():
        scheduler.set_timesteps(STEPS, device=device)
        x = torch.randn(SHAPE, device=device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t)
            x = scheduler.step(output(model_input, t), t, x).prev_sample
        return x

    return loop


@pytest.mark.parametrize("solver", LOOPS)
@pytest.mark.parametrize("provider", ["diffusers", "fastdiff"])
def test_sampling_loop(measure, device, provider, solver):
    (name, options), theirs = LOOPS[solver]
    held = torch.zeros(SHAPE, device=device)
    if provider == "diffusers":
        loop = diffusers_loop(*theirs, lambda x, t: held, device)
    else:
        process = GaussianProcess(schedules.linear(1000))
        sampler = Sampler(lambda x, t: held, process, name, STEPS, device=device, **options)
        loop = lambda: sampler.sample(SHAPE)  # noqa: E731
    with torch.no_grad():
        measure(f"sampling loop, {solver}, {STEPS} steps, {list(SHAPE)} float32", provider, loop)
