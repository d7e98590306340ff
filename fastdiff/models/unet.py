"""The U-Net of DDPM."""

import torch
from torch import nn

from . import files
from .config import UNetConfig
from .layers import Attention, Downsample, GroupNormSiLU, ResBlock, TimeEmbedding, Upsample, zeroed


class UNet(nn.Module):
    """model(x, t): levels of residual blocks at falling, then rising resolution, joined by skip connections.

    Args:
        config: `UNetConfig`; None: its defaults.

    Called with x [B, in_channels, H, W] and t [B], int or float timesteps, it returns [B, out_channels, H, W] in x's
    dtype, or in autocast's. H and W are divisible as image_size is, and need not equal it. Weights and activations are
    channels_last; x may have either layout.

    Attributes: config; sample_shape (C, H, W) and memory_format, which `fastdiff.Sampler` reads.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, appendix B.
    """

    memory_format = torch.channels_last

    def __init__(self, config=None):
        super().__init__()
        self.config = config = UNetConfig() if config is None else config
        if not isinstance(config, UNetConfig):
            raise TypeError(f"config must be a UNetConfig, got {type(config).__name__}")
        self.time = TimeEmbedding(config.channels, 4 * config.channels)
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self.down, skips = _down(config)
        self.middle = _middle(config)
        self.up = _up(config, skips)
        self.norm_out = GroupNormSiLU(config.widths[0], config.groups, config.norm_eps)
        self.conv_out = zeroed(nn.Conv2d(config.widths[0], config.out_channels, 3, padding=1))
        self.to(memory_format=self.memory_format)

    @property
    def sample_shape(self):
        return self.config.in_channels, self.config.image_size, self.config.image_size

    def forward(self, x, t):
        self._check(x, t)
        embedding = self.time(t)  # [B, 4 * channels]
        h = self.conv_in(x.contiguous(memory_format=self.memory_format))
        skips = [h]
        for level in self.down:
            for block, attention in zip(level["blocks"], level["attentions"], strict=True):
                h = attention(block(h, embedding))
                skips.append(h)
            if "downsample" in level:
                h = level["downsample"](h)
                skips.append(h)
        h = self.middle["block_1"](h, embedding)
        h = self.middle["block_2"](self.middle["attention"](h), embedding)
        for level in self.up:
            for block, attention in zip(level["blocks"], level["attentions"], strict=True):
                h = attention(block(torch.cat([h, skips.pop()], dim=1), embedding))
            if "upsample" in level:
                h = level["upsample"](h)
        return self.conv_out(self.norm_out(h))

    def save(self, path):
        """Writes the weights and the config as one safetensors file, which `fastdiff.load_unet` reads."""
        files.save(self, path)

    def _check(self, x, t):
        factor = 2 ** (len(self.config.channel_mult) - 1)
        for name, value in (("x", x), ("t", t)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"x must have shape [B, {self.config.in_channels}, H, W], got {list(x.shape)}")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"x must have H and W divisible by {factor}, got {list(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape {list(x.shape[:1])}, got {list(t.shape)}")


def _block(config, in_channels, channels):
    return ResBlock(
        in_channels, channels, 4 * config.channels,
        groups=config.groups, eps=config.norm_eps, dropout=config.dropout, scale_shift=config.scale_shift,
    )  # fmt: skip


def _attention(config, channels):
    return Attention(channels, config.heads_of(channels), groups=config.groups, eps=config.norm_eps)


def _attention_at(config, level):
    attends = config.resolutions[level] in config.attention_resolutions
    return _attention(config, config.widths[level]) if attends else nn.Identity()


def _down(config):
    """(the levels on the way down, channels of each skip connection)."""
    levels, skips, channels = nn.ModuleList(), [config.channels], config.channels
    for level, width in enumerate(config.widths):
        blocks, attentions = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.num_res_blocks):
            blocks.append(_block(config, channels, width))
            attentions.append(_attention_at(config, level))
            channels = width
            skips.append(channels)
        modules = {"blocks": blocks, "attentions": attentions}
        if level < len(config.widths) - 1:
            modules["downsample"] = Downsample(channels)
            skips.append(channels)
        levels.append(nn.ModuleDict(modules))
    return levels, skips


def _middle(config):
    width = config.widths[-1]
    return nn.ModuleDict(
        {
            "block_1": _block(config, width, width),
            "attention": _attention(config, width),
            "block_2": _block(config, width, width),
        }
    )


def _up(config, skips):
    """The levels on the way up, the coarsest first; takes the skips from the last."""
    levels, channels = nn.ModuleList(), config.widths[-1]
    for level, width in reversed(list(enumerate(config.widths))):
        blocks, attentions = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.num_res_blocks + 1):
            blocks.append(_block(config, channels + skips.pop(), width))
            attentions.append(_attention_at(config, level))
            channels = width
        modules = {"blocks": blocks, "attentions": attentions}
        if level > 0:
            modules["upsample"] = Upsample(channels)
        levels.append(nn.ModuleDict(modules))
    return levels
