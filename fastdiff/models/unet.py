"""The U-Net of DDPM, of improved and guided diffusion, and of their ports: one class, told apart by its config."""

import torch
import torch.nn.functional as F
from torch import nn

from . import dropout, files, fused, norms, parts, replay
from .config import UNetConfig
from .joined import join
from .layers import TimeEmbedding, zeroed


class UNet(nn.Module):
    """model(x, t): levels of residual blocks at falling, then rising resolution, joined by skip connections.

    Args:
        config: `UNetConfig`; None: its defaults.

    Called with x [B, in_channels, H, W] and t [B], int or float timesteps, it returns [B, out_channels, H, W] in x's
    dtype, or in autocast's (logits [B, out_channels] where config.pool). Where the config asks for them: y, int64
    labels [B]; low_res [B, in_channels, h, w]; x_self_cond like x, or None for zeros. H and W are divisible as
    image_size is, and need not equal it. With counters, a pair (rng, sample_ids) as ops take them, dropout's masks are
    a function of them and of the layer; without, the pair is drawn from torch's generator. Weights and activations are
    channels_last; x may have either layout. In evaluation on the CPU with gradients off (which `Sampler` sees to)
    norms, 3x3 convolutions and sums run fused, by Winograd's algorithm: faster, within 10 times eager float32's
    rounding error; `fastdiff.ops.winograd(False)` is the switch. It keeps 1.8 or 4 times the size of those weights,
    and that of all others, from the first call until they change. From the third call with inputs of one shape on, the
    pass is made again without its Python (`fastdiff.models.replay`), to the same bits, where what it computes on its
    way, which is then kept, is at most 32 MiB.

    Attributes: config; sample_shape (C, H, W), memory_format and self_condition, which `fastdiff.Sampler` reads;
    takes_counters and self_condition, which `fastdiff.train` reads.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, appendix B; others in `UNetConfig`.
    """

    memory_format = torch.channels_last
    takes_counters = True
    float32_on_cpu = True  # where `ops.conv3x3` takes as long in float32 as in bfloat16

    def __init__(self, config=None):
        super().__init__()
        self.config = config = UNetConfig() if config is None else config
        if not isinstance(config, UNetConfig):
            raise TypeError(f"config must be a UNetConfig, got {type(config).__name__}")
        self.time = TimeEmbedding(config, 4 * config.channels)
        kernel = config.stem_kernel
        self.conv_in = nn.Conv2d(config.total_in_channels, config.stem, kernel, padding=kernel // 2)
        self.down, skips = parts.down(config)
        self.middle = parts.middle(config)
        if config.pool:
            self.pool = parts.pool(config, skips)
        else:
            self.up = parts.up(config, skips)
            self._add_end(config)
        dropout.number(self)
        self.to(memory_format=self.memory_format)

    def _add_end(self, config):
        kernel, width = config.out_kernel, config.block_widths[0]
        if config.widen == "resample":
            self.block_out = parts.block(config, 2 * config.stem, config.stem)
        if config.norm_first:
            self.norm_out = norms.maker(config, config.norm)(width)
        self.conv_out = zeroed(nn.Conv2d(width, config.out_channels, kernel, padding=kernel // 2))

    @property
    def sample_shape(self):
        return self.config.in_channels, self.config.image_size, self.config.image_width or self.config.image_size

    @property
    def self_condition(self):
        return self.config.self_condition

    def forward(self, x, t, y=None, *, low_res=None, x_self_cond=None, counters=None):
        self._check(x, t, y, low_res, x_self_cond)
        if counters is None and self.training and self.config.dropout:
            counters = dropout.drawn(x)
        x = self._joined(x, low_res, x_self_cond)
        if not fused.inference(x):
            return self._run(x, t, y, counters)
        with fused.settled(x):
            return self._run(x, t, y, counters) if self.training else replay.run(self, self._run, x, t, y)

    def _run(self, x, t, y, counters=None):
        given = self.time(t, y), counters  # [B, 4 * channels], and what dropout goes by
        h = fused.normed(self.conv_in, x.contiguous(memory_format=self.memory_format))
        skips = [h]
        for level in self.down:
            for block, attention in zip(level["blocks"], level["attentions"], strict=True):
                h = attention(block(h, *given))
                skips.append(h)
            if "downsample" in level:
                h = level["downsample"](h, *given)
                if self.config.widen == "block":
                    skips.append(h)
        h = self.middle["block_1"](h, *given)
        h = self.middle["block_2"](self.middle["attention"](h), *given)
        if self.config.pool:
            return self.pool(h, skips)
        for level in self.up:
            for block, attention in zip(level["blocks"], level["attentions"], strict=True):
                h = attention(block(join(h, skips.pop()), *given))
            if "upsample" in level:
                h = level["upsample"](h, *given)
        if self.config.widen == "resample":
            h = self.block_out(join(h, skips.pop()), *given)
        return fused.normed(self.conv_out, h, self.norm_out if self.config.norm_first else None)

    def save(self, path):
        """Writes the weights and the config as one safetensors file, which `fastdiff.load_unet` reads."""
        files.save(self, path)

    def _joined(self, x, low_res, x_self_cond):
        """x and what is concatenated to it."""
        if self.config.low_res:
            return torch.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear")], dim=1)
        if self.config.self_condition:
            return torch.cat([torch.zeros_like(x) if x_self_cond is None else x_self_cond, x], dim=1)
        return x

    def _check(self, x, t, y, low_res, x_self_cond):
        config = self.config
        factor = 2 ** (len(config.channel_mult) - 1)
        for name, value in (("x", x), ("t", t)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if x.dim() != 4 or x.shape[1] != config.in_channels:
            raise ValueError(f"x must have shape [B, {config.in_channels}, H, W], got {list(x.shape)}")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"x must have H and W divisible by {factor}, got {list(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape {list(x.shape[:1])}, got {list(t.shape)}")
        _check_given("y", y, config.num_classes, x.shape[:1])
        _check_given("low_res", low_res, config.low_res, (*x.shape[:2], *getattr(low_res, "shape", ())[2:]))
        if low_res is not None and not low_res.is_floating_point():
            raise ValueError(f"low_res must be floating, on x's scale, got {low_res.dtype}")
        if x_self_cond is not None:
            _check_given("x_self_cond", x_self_cond, config.self_condition, x.shape)


def _check_given(name, value, asked, shape):
    """The tensor is there where the config asks for it, and only there."""
    if (value is not None) != bool(asked):
        option = {"y": "num_classes", "low_res": "low_res", "x_self_cond": "self_condition"}[name]
        raise ValueError(f"{name} must be {'given' if asked else 'None'} where config.{option} is {asked}, got {value}")
    if value is None:
        return
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != tuple(shape):
        got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{name} must have shape {list(shape)}, got {got}")
