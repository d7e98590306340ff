"""What the backward pass keeps of a U-Net's norms with SiLU."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from fastdiff import UNet, UNetConfig, ops
from fastdiff.models import joined, unet
from fastdiff.models.norms import GroupNormSiLU
from fastdiff.ops import reference

COUNTERS = ops.rng.make_rng(1), torch.arange(2)


@contextlib.contextmanager
def keeping(kept, counts=lambda: True):
    """Notes what is saved for backward meanwhile, {address: (bytes, its storage)}: each storage once."""

    def pack(tensor):
        storage = tensor.untyped_storage()
        if counts():
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def total(kept):
    return sum(nbytes for nbytes, _ in kept.values())


def kept_of(shape, dropout, rng, sample_ids, layer):
    """Dropout's mask by its definition."""
    words = reference.words(shape[1:].numel(), rng, sample_ids, ops.rng.DROPOUT + layer)  # [4, B, blocks]
    return (words.permute(1, 2, 0).reshape(shape) >= int(dropout * 2**32)).contiguous(memory_format=torch.channels_last)


def eager(norm, x, add=None, scale=None, shift=None, dropout=0.0, **counters):
    h = x if add is None else x + add[:, :, None, None]
    h = F.group_norm(h, norm.groups, norm.weight, norm.bias, norm.eps)
    if scale is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    h = F.silu(h) if norm.silu else h
    return torch.where(kept_of(h.shape, dropout, **counters), h, 0) / (1 - dropout) if dropout else h


def kept_by_sites(net, forward, join, monkeypatch):
    """(bytes, gradient of the first convolution): of all norms with SiLU and joined skips in a step of the network."""
    kept, inside = {}, []

    def watched(function):
        def call(first, *arguments, **options):
            inside.append(getattr(first, "silu", True))  # not attention's norms
            try:
                return function(first, *arguments, **options)
            finally:
                inside.pop()

        return call

    with monkeypatch.context() as patch:
        patch.setattr(GroupNormSiLU, "forward", watched(forward))
        patch.setattr(unet, "join", watched(join))
        net.zero_grad()
        generator = torch.Generator().manual_seed(0)
        x, t = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([3, 500])
        with keeping(kept, lambda: any(inside)):
            net(x, t, counters=COUNTERS).square().mean().backward()
    return total(kept), net.conv_in.weight.grad.clone()


@pytest.mark.parametrize("dropout, scale_shift, share", [(0.1, False, 0.43), (0.1, True, 0.37), (0.0, True, 0.39),
                                                         (0.0, False, 0.45)])  # fmt: skip
def test_the_sites_of_a_network_keep_less_than_half_of_eagers(monkeypatch, dropout, scale_shift, share):
    """Their input alone, where eager keeps the norm's result too, FiLM's and dropout's mask; a skip connection once."""
    torch.manual_seed(0)
    options = dict(image_size=16, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,))
    net = UNet(UNetConfig(**options, groups=8, scale_shift=scale_shift, dropout=dropout))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    fused, gradient = kept_by_sites(net, GroupNormSiLU.forward, joined.join, monkeypatch)
    plain, expected = kept_by_sites(net, eager, lambda *parts: torch.cat(parts, dim=1), monkeypatch)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert fused <= share * plain, f"{fused / plain:.3f}: {fused} of {plain} bytes"


def test_norms_with_silu_keep_half_of_eagers():
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)
    plain, fused = {}, {}
    with keeping(plain):
        F.silu(F.group_norm(x, 8, weight, bias)).sum().backward()
    with keeping(fused):
        ops.group_norm_silu(x, 8, weight, bias).sum().backward()
    assert total(fused) <= 0.51 * total(plain), f"{total(fused)} of {total(plain)} bytes"
