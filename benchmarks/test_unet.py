"""The DDPM CIFAR-10 network of 35.7 M parameters, one forward without gradients: ours against its peers on one set of
weights.

`eager` is our network by torch's own convolutions, `compiled` that through torch.compile, `freezing` with inductor's
constant folding too, `diffusers` its UNet2DModel in either memory format, `openai style` the network in plain torch as
OpenAI's code has it: NCHW, one operation after the other, attention as two products. denoising-diffusion-pytorch has
an architecture of its own, which ours takes the weights of. The id `heavy` keeps a case out of a quick look.
"""

import copy

import pytest
import torch

from fastdiff import UNet, load_unet, ops
from fastdiff.models import save_unet, summary
from tests.models import plain

PROVIDERS = ["eager", "compiled", "freezing", "openai style", "diffusers", "diffusers channels_last", "fastdiff"]
NETWORK_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of the output's maximum


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(the network, a folder of the same for diffusers); nothing in it is zero."""
    torch.manual_seed(0)
    net = UNet().eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("unet") / "diffusers"
    save_unet(net, folder, "diffusers")
    return net, folder


def by_torch(net):
    def call(x, t):
        with ops.winograd(False):
            return net(x, t)

    return call


def compiled(net, x, t, freezing):
    """torch.compile of the network, compiled at once, so that `freezing` is known while it is."""
    torch._dynamo.reset()
    module = torch.compile(net)
    with torch._inductor.config.patch(freezing=freezing):
        module(x, t)
    return module


def diffusers(folder, x, memory_format):
    peer = pytest.importorskip("diffusers").UNet2DModel.from_pretrained(folder, torch_dtype=x.dtype)
    peer = peer.eval().to(x.device, memory_format=memory_format)
    return lambda x, t: peer(x.contiguous(memory_format=memory_format), t).sample


def provided(provider, weights, x, t):
    net, folder = weights
    if provider.startswith("diffusers"):
        last = provider.endswith("channels_last")
        return diffusers(folder, x, torch.channels_last if last else torch.contiguous_format)
    net = copy.deepcopy(net).to(x.device, x.dtype)
    if provider == "openai style":
        named = net.state_dict()
        return lambda x, t: plain.unet(net.config, named, x, t)
    if provider == "fastdiff":
        return net
    if provider == "eager":
        return by_torch(net)
    return compiled(net, x, t, provider == "freezing")


@pytest.mark.parametrize("B", [1, 8], ids=["heavy-batch1", "heavy-batch8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_forward(measure, device, weights, provider, dtype, B):
    net = copy.deepcopy(weights[0]).to(device)
    x, t = torch.randn(B, *net.sample_shape, device=device), torch.randint(1000, (B,), device=device)
    with torch.no_grad():
        with ops.winograd(False):
            expected = net(x, t)
        function = provided(provider, weights, x.to(dtype), t)
        error = (function(x.to(dtype), t).float() - expected).abs().max()
        assert error < NETWORK_TOLERANCES[dtype] * expected.abs().max()
        case = f"U-Net forward {list(x.shape)} {str(dtype).removeprefix('torch.')}"
        measure(case, provider, lambda: function(x.to(dtype), t), flops=summary(weights[0], x.shape).flops)


@pytest.mark.parametrize("B", [1, 8], ids=["heavy-batch1", "heavy-batch8"])
@pytest.mark.parametrize("provider", ["lucidrains", "fastdiff"])
def test_lucidrains(measure, device, provider, B):
    torch.manual_seed(0)
    theirs = pytest.importorskip("denoising_diffusion_pytorch").Unet(64, flash_attn=False).eval().to(device)
    ours = load_unet(theirs.state_dict(), config=dict(image_size=32), device=device)
    x, t = torch.randn(B, 3, 32, 32, device=device), torch.randint(1000, (B,), device=device)
    with torch.no_grad():
        expected = theirs(x, t)
        assert (ours(x, t) - expected).abs().max() < NETWORK_TOLERANCES[torch.float32] * expected.abs().max()
        model = ours if provider == "fastdiff" else theirs
        measure(f"lucidrains' U-Net forward {list(x.shape)} float32", provider, lambda: model(x, t))
