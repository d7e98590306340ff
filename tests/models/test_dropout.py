"""Dropout that its norm carries out."""

import functools

import pytest
import torch
from torch import nn

from fastdiff import UNet, UNetConfig, ops
from fastdiff.models.dropout import Dropout
from fastdiff.models.layers import ConvFirstBlock, ResBlock
from fastdiff.models.norms import GroupNormSiLU, RMSNormSiLU

NORM = functools.partial(GroupNormSiLU, groups=4)
SMALL = dict(
    image_size=8, in_channels=1, channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), groups=4
)
KEY = torch.tensor([5, 7])


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def network(dropout, **options):
    torch.manual_seed(0)
    net = UNet(UNetConfig(**SMALL | options, dropout=dropout)).train()
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def test_a_block_drops_by_its_layers_stream(backend):
    block, x, embedding = ResBlock(8, 8, 16, norm=NORM, dropout=0.4).train(), image(2, 8, 4, 4), image(2, 16)
    nn.init.normal_(block.conv_2.weight)
    block.dropout.layer = 3
    counters = KEY, torch.tensor([9, 2**31])
    drop = dict(zip(("rng", "sample_ids"), counters, strict=True))
    h, norm = block.conv_1(block.norm_1(x)), block.norm_2
    h = ops.group_norm_silu(h, 4, norm.weight, norm.bias, eps=norm.eps, add=block.time(embedding), dropout=0.4, layer=3,
                            **drop)  # fmt: skip
    assert 0.25 < (h == 0).float().mean() < 0.55
    torch.testing.assert_close(block(x, embedding, counters), x + block.conv_2(h))


def test_a_block_that_begins_with_a_convolution_drops_after_its_first_norm(backend):
    block, x, embedding = ConvFirstBlock(8, 8, 16, norm=NORM, dropout=0.4).train(), image(2, 8, 4, 4), image(2, 16)
    scale, shift = block.time(embedding).chunk(2, dim=1)
    ids = torch.tensor([9, 2**31])
    h = block.norm_1(block.conv_1(x), scale=scale, shift=shift, dropout=0.4, rng=KEY, sample_ids=ids)
    torch.testing.assert_close(block(x, embedding, (KEY, ids)), block.norm_2(block.conv_2(h)) + x)
    assert not torch.equal(block(x, embedding, (KEY, ids)), block(x, embedding, (KEY, ids + 1)))


def test_after_an_rms_norm_it_is_torchs():
    block = ResBlock(8, 8, 16, norm=RMSNormSiLU, dropout=0.4, scale_shift=True).train()
    nn.init.normal_(block.conv_2.weight)
    x, embedding, ids = image(2, 8, 4, 4), image(2, 16), torch.arange(2)
    torch.manual_seed(3)
    y = block(x, embedding, (KEY, ids))
    scale, shift = block.time(embedding).chunk(2, dim=1)
    torch.manual_seed(3)
    h = nn.functional.dropout(block.norm_2(block.conv_1(block.norm_1(x)), scale=scale, shift=shift), 0.4)
    torch.testing.assert_close(y, x + block.conv_2(h))


def test_an_rms_norm_takes_nothing_that_it_has_no_use_for():
    """An add, say, of a block without scale-shift, which would go unseen."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'add'"):
        ResBlock(8, 8, 16, norm=RMSNormSiLU)(image(2, 8, 4, 4), image(2, 16))


def test_masks_follow_the_samples_ids():
    """A sample has the same masks in any batch and place; other ids, other draws and other seeds have others."""
    net, x, t, ids = network(0.3), image(4, 1, 8, 8), torch.arange(4) * 9, torch.arange(4) + 50
    y = net(x, t, counters=(KEY, ids))
    order = torch.tensor([2, 0])
    torch.testing.assert_close(net(x[order], t[order], counters=(KEY, ids[order])), y[order])
    for other in ((KEY, ids + 4), (KEY + torch.tensor([0, 1]), ids), (KEY + torch.tensor([1, 0]), ids)):
        assert not torch.isclose(net(x, t, counters=other), y, rtol=1e-3, atol=1e-4).all(dim=1).any(dim=1).all()


def test_without_counters_torchs_generator_decides():
    net, x, t = network(0.3), image(4, 1, 8, 8), torch.arange(4) * 9
    torch.manual_seed(5)
    first, second = net(x, t), net(x, t)
    torch.manual_seed(5)
    assert torch.equal(net(x, t), first) and not torch.equal(first, second)


@pytest.mark.parametrize("training, dropout, given", [(False, 0.3, False), (True, 0.0, False), (True, 0.3, True)])
def test_nothing_is_drawn_that_nobody_needs(training, dropout, given):
    net, x, t = network(dropout).train(training), image(2, 1, 8, 8), torch.arange(2)
    before = torch.get_rng_state()
    net(x, t, counters=(KEY, t) if given else None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{}, {"downsample": "block", "upsample": "block", "scale_shift": True}])
def test_every_layer_has_a_stream_of_its_own(options):
    layers = [module.layer for module in network(0.3, **options).modules() if isinstance(module, Dropout)]
    assert sorted(layers) == list(range(len(layers))) and len(layers) >= 8


def test_counters_are_checked():
    with pytest.raises(ValueError, match="sample_ids must"):
        network(0.3)(image(2, 1, 8, 8), torch.arange(2), counters=(KEY, torch.arange(3)))


@pytest.mark.slow
def test_training_compiles_whole():
    net, x, t = network(0.3), image(2, 1, 8, 8), torch.arange(2)
    compiled = torch.compile(net, fullgraph=True)
    for step in (0, 1):
        counters = ops.rng.make_rng(1, step), t
        y, expected = compiled(x, t, counters=counters), net(x, t, counters=counters)
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
    compiled(x, t).sum().backward()
    assert net.conv_in.weight.grad.abs().sum() > 0
