"""The installed diffusers and denoising-diffusion-pytorch, accelerated: the same outputs and gradients."""

import collections
import warnings

import pytest
import torch
from torch import nn

import fastdiff

X, T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])


def diffusers_unet(**options):
    diffusers = pytest.importorskip("diffusers", reason="accelerates diffusers, which is not installed")
    config = dict(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diffusers.UNet2DModel(**{**config, **options})


class Conditioned(nn.Module):
    """UNet2DConditionModel, with attention to a text."""

    def __init__(self, net, text):
        super().__init__()
        self.net, self.text = net, text

    def forward(self, x, t):
        return self.net(x, t, self.text)


def conditional_unet():
    diffusers = pytest.importorskip("diffusers", reason="accelerates diffusers, which is not installed")
    net = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return Conditioned(net, torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)))


def lucidrains_unet(**options):
    peer = pytest.importorskip("denoising_diffusion_pytorch", reason="accelerates that package, which is not installed")
    return peer.Unet(16, dim_mults=(1, 2), **options)


SUM = {"GroupNorm + SiLU": 9, "add + GroupNorm + SiLU": 8, "GroupNorm": 4}
FILM = {"GroupNorm + SiLU": 9, "GroupNorm + FiLM + SiLU": 8, "GroupNorm": 4}
NETWORKS = {
    "diffusers": (diffusers_unet, {}, SUM),
    "diffusers with FiLM": (diffusers_unet, dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8), FILM),
    "diffusers' conditional one": (conditional_unet, {}, SUM),
    "lucidrains": (lucidrains_unet, {}, {"RMSNorm + [FiLM] + SiLU": 22, "RMSNorm": 7}),
}


def drawn(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def tensor(output):
    return getattr(output, "sample", output)


def gradients(model):
    model.zero_grad()
    tensor(model(X, T)).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_near(found, wanted):
    """Relative to the largest of all: a key's bias has a gradient of rounding alone."""
    scale = max(each.abs().max().item() for each in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients(name):
    make, options, kinds = NETWORKS[name]
    model = drawn(make(**options))
    keys, expected, wanted = list(model.state_dict()), tensor(model(X, T)), gradients(model)
    report = fastdiff.accelerate(model, probe=(X, T), channels_last=True)
    assert collections.Counter(site.kind for site in report.sites) == kinds and not report.left
    assert report.error < 2e-5 and list(model.state_dict()) == keys
    assert_near(gradients(model), wanted)
    report.undo()
    assert torch.equal(tensor(model(X, T)), expected)


def test_a_step_of_training():
    """The same loss curve, through an optimiser and train mode."""
    losses = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = drawn(diffusers_unet()).train()
        if accelerated:
            fastdiff.accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = (model(X, T).sample - X).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][2] < losses[0][0]


def test_gradient_checkpointing():
    """diffusers checkpoints whole blocks: their calls go through as before."""
    model = drawn(diffusers_unet()).train()
    wanted = gradients(model)
    fastdiff.accelerate(model)
    model.enable_gradient_checkpointing()
    assert_near(gradients(model), wanted)


def test_torchvision():
    """A ResNet with GroupNorm in BatchNorm's place, and its Conv2dNormActivation with SiLU."""
    torchvision = pytest.importorskip("torchvision", reason="accelerates torchvision, which is not installed")
    x = X.repeat(1, 1, 2, 2)
    model = drawn(torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels)))
    report = fastdiff.accelerate(model, probe=(x,))
    assert {site.kind for site in report.sites} == {"GroupNorm"} and len(report.replaced) == 20 and report.error < 2e-5
    block = torchvision.ops.Conv2dNormActivation(
        3, 8, norm_layer=lambda channels: nn.GroupNorm(2, channels), activation_layer=nn.SiLU
    )
    report = fastdiff.accelerate(drawn(block), probe=(X,))
    assert [site.kind for site in report.sites] == ["GroupNorm + SiLU"] and report.error < 2e-5
