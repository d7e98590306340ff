"""The parts of a `UNet` as its config asks for them."""

import functools

from torch import nn

from . import norms
from .attention import Attention, LinearAttention
from .layers import ConvFirstBlock, ResBlock, StandardizedConv2d
from .pools import AdaptivePool, AttentionPool, SpatialPool
from .resampling import Downsample, Nearest, Pool, Shrink, Unshuffle, Upsample, Widen


def down(config):
    """(the levels on the way down, channels of each skip connection)."""
    levels, skips, channels = nn.ModuleList(), [config.stem], config.stem
    for level, width in enumerate(config.block_widths):
        blocks, attentions = nn.ModuleList(), nn.ModuleList()
        for i in range(config.num_res_blocks):
            blocks.append(block(config, channels, width))
            attentions.append(_attention_at(config, level, width, i == config.num_res_blocks - 1))
            channels = width
            skips.append(channels)
        modules = {"blocks": blocks, "attentions": attentions}
        if config.widen == "resample":
            channels = config.widths[level]
            last = level == len(config.widths) - 1
            shrink = Shrink if config.downsample == "conv_4x4" else Unshuffle
            modules["downsample"] = (Widen if last else shrink)(width, channels)
        elif level < len(config.widths) - 1:
            modules["downsample"] = _downsample(config, channels)
            skips.append(channels)
        levels.append(nn.ModuleDict(modules))
    return levels, skips


def middle(config):
    width = config.widths[-1]
    attention = _attention(config, Attention, width, -1) if config.middle_attention else nn.Identity()
    return nn.ModuleDict(
        {"block_1": block(config, width, width), "attention": attention, "block_2": block(config, width, width)}
    )


def up(config, skips):
    """The levels on the way up, the coarsest first; takes the skips from the last."""
    levels, channels = nn.ModuleList(), config.widths[-1]
    count = config.num_res_blocks + (config.widen == "block")
    for level, width in reversed(list(enumerate(config.widths))):
        blocks, attentions = nn.ModuleList(), nn.ModuleList()
        for i in range(count):
            blocks.append(block(config, channels + skips.pop(), width))
            attentions.append(_attention_at(config, level, width, i == count - 1, up=True))
            channels = width
        modules = {"blocks": blocks, "attentions": attentions}
        if config.widen == "resample":
            channels = config.block_widths[level]
            modules["upsample"] = (Upsample if level else Widen)(width, channels)
        elif level > 0:
            modules["upsample"] = _upsample(config, channels)
        levels.append(nn.ModuleDict(modules))
    return levels


def pool(config, skips):
    """What ends the encoder half."""
    width, norm = config.widths[-1], norms.maker(config, config.norm)
    if config.pool == "adaptive":
        return AdaptivePool(width, config.out_channels, norm)
    if config.pool == "attention":
        return AttentionPool(width, config.out_channels, norm, config.head_channels, config.resolutions[-1])
    return SpatialPool(sum(skips) + width, config.out_channels, normed=config.pool == "spatial_v2")


def block(config, in_channels, channels, resample=None):
    norm = norms.maker(config, config.norm)
    if not config.norm_first:
        conv = StandardizedConv2d if config.standardized else nn.Conv2d
        return ConvFirstBlock(
            in_channels, channels, 4 * config.channels, norm=norm, dropout=config.dropout, conv=conv
        )  # fmt: skip
    return ResBlock(
        in_channels, channels, 4 * config.channels,
        norm=norm, dropout=config.dropout, scale_shift=config.scale_shift, resample=resample,
    )  # fmt: skip


def _downsample(config, channels):
    return {
        "conv": functools.partial(Downsample, channels),
        "conv_asymmetric": functools.partial(Downsample, channels, asymmetric=True),
        "pool": Pool,
        "block": lambda: block(config, channels, channels, Pool()),
    }[config.downsample]()


def _upsample(config, channels):
    return {
        "conv": functools.partial(Upsample, channels),
        "nearest": Nearest,
        "block": lambda: block(config, channels, channels, Nearest()),
    }[config.upsample]()


def _attention_at(config, level, width, last, up=False):
    """After every block of a level that attends, but where widen is resample after its last alone."""
    kind = config.attention_at(level, up)
    if kind is None or (config.widen == "resample" and not last):
        return nn.Identity()
    linear = functools.partial(LinearAttention, mean=config.linear_mean)
    return _attention(config, Attention if kind == "full" else linear, width, level, up)


def _attention(config, kind, width, level, up=False):
    return kind(
        width, config.heads_of(width, level, up),
        norm=norms.maker(config, config.attention_norm or config.norm),
        inner=config.inner_width_of(width, level, up),
        order=config.qkv_order, bias=config.qkv_bias, memory=config.memory,
    )  # fmt: skip
