"""One training step on the CPU or GPU: loss, backward and AdamW, against the same network in plain torch.

`eager` is diffusers' UNet2DModel of the same weights and dropout, channels_last, with q_sample and the loss in plain
torch.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

from fastdiff import GaussianProcess, UNet, UNetConfig, schedules
from fastdiff.models import save_unet

NETWORKS = {
    "small": (dict(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), image_size=16), 8),
    "heavy-cifar10": ({}, 8),
}


@pytest.fixture(scope="module", params=NETWORKS)
def networks(request, tmp_path_factory):
    """(its name, our network, diffusers' of the same weights, batch)."""
    options, B = NETWORKS[request.param]
    torch.manual_seed(0)
    net = UNet(UNetConfig(**options, dropout=0.1))
    folder = tmp_path_factory.mktemp("unet") / "diffusers"
    save_unet(net, folder, "diffusers")
    peer = pytest.importorskip("diffusers").UNet2DModel.from_pretrained(folder)
    return request.param, net, peer.to(memory_format=torch.channels_last), B


def eager_loss(peer, alphas_cumprod):
    def loss(x, t, noise):
        a = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x_t = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(peer(x_t, t).sample, noise)

    return loss


def fastdiff_loss(net, process):
    def loss(x, t, noise):
        x_t = process.q_sample(x, t, noise=noise)
        return F.mse_loss(net(x_t, t), noise)

    return loss


@pytest.mark.parametrize("provider", ["eager", "fastdiff"])
def test_step(measure, device, networks, provider):
    name, net, peer, B = networks
    process = GaussianProcess(schedules.linear(1000))
    x, t = torch.rand(B, *net.sample_shape, device=device) * 2 - 1, torch.randint(1000, (B,), device=device)
    noise = torch.randn_like(x)
    net, peer = copy.deepcopy(net).eval().to(device), copy.deepcopy(peer).eval().to(device)
    alphas_cumprod = (1 - schedules.linear(1000)).cumprod(0).float().to(device)
    ours, theirs = fastdiff_loss(net, process), eager_loss(peer, alphas_cumprod)
    torch.testing.assert_close(ours(x, t, noise), theirs(x, t, noise), rtol=1e-4, atol=1e-5)
    net.train(), peer.train()
    loss, model = (ours, net) if provider == "fastdiff" else (theirs, peer)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss(x, t, noise).backward()
        optimizer.step()

    measure(f"training step, {name.removeprefix('heavy-')} [{B}, {x[0].numel()}] float32", provider, step)
