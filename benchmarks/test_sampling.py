"""Whole sampling loops with a network: 1000 steps of DDPM, 50 of DDIM, 20 of DPM-Solver++, one set of weights.

`eager` and `compiled` are the textbook's loop in torch around the network by torch's own convolutions, `diffusers` its
UNet2DModel in its scheduler's documented loop. The network is small, so that a loop ends: what it costs by itself is
benchmarks/test_unet.py's matter.
"""

import copy

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, ops, schedules
from fastdiff.models import save_unet

SHAPE = (4, 1, 16, 16)
CONFIG = UNetConfig(
    in_channels=1, out_channels=1, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,),
    image_size=16,
)  # fmt: skip
LOOPS = {
    "ddpm": (1000, {}, "DDPMScheduler", {}),
    "ddim": (50, {}, "DDIMScheduler", {}),
    "dpmpp_2m": (20, {"clip": None}, "DPMSolverMultistepScheduler", {}),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """(ours, diffusers' of the same weights or None); nothing in them is zero."""
    torch.manual_seed(0)
    net = UNet(CONFIG).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("unet") / "diffusers"
    save_unet(net, folder, "diffusers")
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return net, None
    return net, UNet2DModel.from_pretrained(folder).eval()


def ancestral(process, model, x):
    """DDPM as its paper's algorithm 2 has it, x0 clipped."""
    alphas, sigmas = process.alpha.float().tolist(), process.sigma.float().tolist()
    first, second = process.posterior_mean_coef1.tolist(), process.posterior_mean_coef2.tolist()
    deviations = process.posterior_variance.sqrt().tolist()
    for t in reversed(range(process.num_timesteps)):
        eps = model(x, torch.full(x.shape[:1], t))
        x0 = ((x - sigmas[t] * eps) / alphas[t]).clamp(-1, 1)
        x = first[t] * x0 + second[t] * x
        if t:
            x = x + deviations[t] * torch.randn_like(x)
    return x


def implicit(process, model, x, steps):
    """DDIM of eta 0."""
    alphas, sigmas = process.alpha.float().tolist(), process.sigma.float().tolist()
    times = list(range(0, process.num_timesteps, process.num_timesteps // steps))[::-1]
    for t, following in zip(times, [*times[1:], None], strict=True):
        eps = model(x, torch.full(x.shape[:1], t))
        x0 = ((x - sigmas[t] * eps) / alphas[t]).clamp(-1, 1)
        if following is None:
            return x0
        eps = (x - alphas[t] * x0) / sigmas[t]
        x = alphas[following] * x0 + sigmas[following] * eps


def textbook(provider, solver, net, process, steps):
    if solver == "dpmpp_2m":
        pytest.skip("nobody writes this one by hand")
    torch._dynamo.reset()
    model = torch.compile(net) if provider == "compiled" else net

    def loop():
        with ops.winograd(False):
            x = torch.randn(SHAPE)
            return ancestral(process, model, x) if solver == "ddpm" else implicit(process, model, x, steps)

    return loop


def by_diffusers(name, options, peer, steps):
    import diffusers

    scheduler = getattr(diffusers, name)(1000, **options)

    def loop():
        scheduler.set_timesteps(steps)
        x = torch.randn(SHAPE) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(peer(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        return x

    return loop


@pytest.mark.parametrize("solver", LOOPS, ids=[f"heavy-{name}" for name in LOOPS])
@pytest.mark.parametrize("provider", ["eager", "compiled", "diffusers", "fastdiff"])
def test_sampling(measure, device, networks, provider, solver):
    if device.type != "cpu":
        pytest.skip("the CPU's loops; a GPU's are benchmarks/test_sampler.py's")
    (steps, options, *theirs), (net, peer) = LOOPS[solver], networks
    process = GaussianProcess(schedules.linear(1000))
    if provider == "fastdiff":
        sampler = Sampler(copy.deepcopy(net), process, solver, steps, precision="fp32", **options)
        loop = lambda: sampler.sample(SHAPE)  # noqa: E731
    elif provider == "diffusers":
        if peer is None:
            pytest.skip("diffusers is not installed")
        loop = by_diffusers(*theirs, peer, steps)
    else:
        loop = textbook(provider, solver, net, process, steps)
    with torch.no_grad():
        assert loop().isfinite().all()
        measure(f"sampling with a network, {solver}, {steps} steps, {list(SHAPE)} float32", provider, loop)
