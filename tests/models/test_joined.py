"""Joined skip connections: the same numbers as torch.cat, and not kept."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdiff import UNet, UNetConfig
from fastdiff.models import joined, unet
from fastdiff.models.joined import join, keeping_parts
from fastdiff.models.norms import GroupNormSiLU, RMSNormSiLU

LAST = {"memory_format": torch.channels_last}


def parts(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, 4, 4, generator=generator).to(**LAST).requires_grad_(requires_grad) for width in (8, 4)
    ]


def kept_of(function):
    """(the tensors that backward keeps of function(), its result)."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = function()
    return kept, result


def test_a_join_is_torchs():
    h, skip = parts()
    x = join(h, skip)
    assert torch.equal(x, torch.cat([h, skip], dim=1)) and x.is_contiguous(**LAST)
    upstream = torch.randn_like(x)
    for gradient, expected in zip(torch.autograd.grad(x, (h, skip), upstream), upstream.split([8, 4], 1), strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("module", [GroupNormSiLU(12, 3), RMSNormSiLU(12), nn.Conv2d(12, 4, 1),
                                    nn.Conv2d(12, 4, 3, padding=1)], ids=["group", "rms", "1x1", "3x3"])  # fmt: skip
def test_a_module_keeps_the_parts(module):
    h, skip = parts()
    addresses = {part.data_ptr() for part in (h, skip)}
    kept, y = kept_of(lambda: keeping_parts(module, join(h, skip)))
    assert {tensor.data_ptr() for tensor in kept if tensor.dim() == 4 and tensor.shape[2] == 4} == addresses
    reference = module(torch.cat([h, skip], dim=1))
    assert torch.equal(y, reference)
    leaves = [h, skip, *module.parameters()]
    for found, expected in zip(
        torch.autograd.grad(y.square().sum(), leaves, retain_graph=True),
        torch.autograd.grad(reference.square().sum(), leaves),
        strict=True,
    ):
        assert torch.equal(found, expected)
    torch.autograd.grad(y.square().sum(), leaves)  # a second time, of the graph that was retained


@pytest.mark.parametrize("after", [False, True], ids=["before", "after a pass that ends before the join"])
def test_a_part_that_is_changed_meanwhile_is_noticed(after):
    h, skip = parts()
    h, conv = h * 1, nn.Conv2d(12, 4, 1)
    y = keeping_parts(conv, join(h, skip))
    if after:
        torch.autograd.grad(y.sum(), conv.weight, retain_graph=True)
    with torch.no_grad():
        h.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "options", [{}, {"norm": "rms", "norm_first": False, "scale_shift": True}], ids=["ddpm", "convolution first"]
)
def test_a_network_keeps_no_joined_image(monkeypatch, options):
    config = UNetConfig(
        image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), groups=8, **options
    )
    torch.manual_seed(0)
    net = UNet(config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 9])
    images = []

    def watched(h, skip):
        images.append(join(h, skip))
        return images[-1]

    monkeypatch.setattr(unet, "join", watched)
    kept, y = kept_of(lambda: net(x, t))
    assert len(images) == 4
    assert not {image.data_ptr() for image in images} & {tensor.data_ptr() for tensor in kept}
    y.square().sum().backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    monkeypatch.setattr(unet, "join", lambda h, skip: torch.cat([h, skip], dim=1))
    net.zero_grad()
    net(x, t).square().sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, net.parameters(), strict=True))


def test_a_checkpointed_join_has_the_same_gradient():
    """Of two modules that keep its parts, as in a block; the checkpoint gives them out once in a pass."""
    h, skip = parts()
    norm, conv = GroupNormSiLU(12, 3), nn.Conv2d(12, 12, 1)

    def block(*p):
        x = join(*p)
        return keeping_parts(norm, x) + keeping_parts(conv, x)

    x = torch.cat([h, skip], 1)
    expected = torch.autograd.grad((norm(x) + conv(x)).square().sum(), (h, skip))
    loss = checkpoint(block, h, skip, use_reentrant=False).square().sum()
    for retain in (True, False):
        found = torch.autograd.grad(loss, (h, skip), retain_graph=retain)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("recording", [False, True])
def test_where_nothing_is_kept_a_join_is_a_cat(monkeypatch, recording):
    monkeypatch.setattr(joined._Join, "apply", None)
    with torch.set_grad_enabled(recording):
        join(*parts(requires_grad=not recording))


def test_transforms_are_not_disturbed():
    conv = nn.Conv2d(12, 4, 1)
    h, skip = parts(requires_grad=False)
    gradient = torch.func.grad(lambda h: keeping_parts(conv, join(h, skip)).sum())(h)
    assert gradient.shape == h.shape
