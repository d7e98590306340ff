"""Whole sampling loops with a network: 1000 steps of DDPM, 50 of DDIM, 20 of DPM-Solver++, one set of weights; and 50
of DDIM with the network of the digits, one image, which is the host's work more than arithmetic.

`eager` and `compiled` are the textbook's loop in torch around the network by torch's own convolutions, `openai style`
that loop around the same network as functions of plain torch without a module, `diffusers` its UNet2DModel in its
scheduler's documented loop. The network is small, so that a loop ends: what it costs by itself is
benchmarks/test_unet.py's matter.
"""

import copy
import functools

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, ops, schedules
from fastdiff.cli import settings
from fastdiff.models import save_unet
from tests.models import plain

GRAY = dict(in_channels=1, out_channels=1)
SMALL = dict(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), image_size=16)
NETWORKS = {  # config, batch
    "small": (UNetConfig(**GRAY, **SMALL), 4),
    "digits": (UNetConfig(**GRAY, image_size=8, **settings.PRESETS["digits"]["model"]), 1),
}
LOOPS = {
    "ddpm": (1000, {}, "DDPMScheduler", {}),
    "ddim": (50, {}, "DDIMScheduler", {}),
    "dpmpp_2m": (20, {"clip": None}, "DPMSolverMultistepScheduler", {}),
}
CASES = [*(("small", solver) for solver in LOOPS), ("digits", "ddim")]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """By name, (ours, diffusers' of the same weights or None); nothing in them is zero."""
    return {name: pair(config, tmp_path_factory.mktemp(name)) for name, (config, _) in NETWORKS.items()}


def pair(config, folder):
    torch.manual_seed(0)
    net = UNet(config).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    folder = folder / "diffusers"
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


def textbook(provider, solver, net, process, steps, shape):
    if solver == "dpmpp_2m":
        pytest.skip("nobody writes this one by hand")
    torch._dynamo.reset()
    model = torch.compile(net) if provider == "compiled" else net
    if provider == "openai style":
        model = functools.partial(plain.unet, net.config, net.state_dict())

    def loop():
        with ops.winograd(False):
            x = torch.randn(shape)
            return ancestral(process, model, x) if solver == "ddpm" else implicit(process, model, x, steps)

    return loop


def by_diffusers(name, options, peer, steps, shape):
    import diffusers

    scheduler = getattr(diffusers, name)(1000, **options)

    def loop():
        scheduler.set_timesteps(steps)
        x = torch.randn(shape) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(peer(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        return x

    return loop


@pytest.mark.parametrize(("network", "solver"), CASES, ids=[f"heavy-{network}-{solver}" for network, solver in CASES])
@pytest.mark.parametrize("provider", ["eager", "compiled", "openai style", "diffusers", "fastdiff"])
def test_sampling(measure, device, networks, provider, network, solver):
    if device.type != "cpu":
        pytest.skip("the CPU's loops; a GPU's are benchmarks/test_sampler.py's")
    (steps, options, *theirs), (net, peer) = LOOPS[solver], networks[network]
    config, batch = NETWORKS[network]
    shape = (batch, 1, config.image_size, config.image_size)
    process = GaussianProcess(schedules.linear(1000))
    if provider == "fastdiff":
        sampler = Sampler(copy.deepcopy(net), process, solver, steps, precision="fp32", **options)
        loop = lambda: sampler.sample(shape)  # noqa: E731
    elif provider == "diffusers":
        if peer is None:
            pytest.skip("diffusers is not installed")
        loop = by_diffusers(*theirs, peer, steps, shape)
    else:
        loop = textbook(provider, solver, net, process, steps, shape)
    with torch.no_grad():
        assert loop().isfinite().all()
        measure(f"sampling with the {network} network, {solver}, {steps} steps, {list(shape)} float32", provider, loop)
