"""The blocks of a U-Net, in the order in which it uses them."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from . import fused, joined
from .dropout import Dropout


def sinusoidal_embedding(t, dim, *, sin_first=True, freq_shift=1, theta=10000, dtype=torch.float32):
    """[sin(t w_0), ..., sin(t w_last), cos(t w_0), ..., cos(t w_last)], w_i = theta^(-i / (half - freq_shift)).

    t [B], int or float; i < half = dim/2. Returns [B, dim] in dtype, float32 or float64, whatever t's dtype and
    autocast; the frequencies are float32 in either. Without sin_first the cosines precede the sines.
    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5, as Ho et al. 2020 arrange it.
    """
    half = dim // 2
    step = -math.log(theta) / (half - freq_shift)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * step)
    angle = t.to(dtype)[:, None] * frequencies.to(dtype)  # [B, dim/2]
    first, second = (angle.sin(), angle.cos()) if sin_first else (angle.cos(), angle.sin())
    return torch.cat([first, second], dim=1)


class TimeEmbedding(nn.Module):
    """silu(linear_2(act(linear_1(sinusoids(t)))) + classes(y)): t [B] to [B, width].

    The last SiLU is the one that every residual block would begin with. With fourier_features the sinusoids are
    [t, sin(2 pi t fourier), cos(2 pi t fourier)], fourier a parameter.
    """

    def __init__(self, config, width):
        super().__init__()
        self.dim, self.act = config.channels, {"silu": F.silu, "gelu": F.gelu}[config.embedding_act]
        self.sinusoids = dict(sin_first=config.sin_first, freq_shift=config.freq_shift, theta=config.theta)
        features = config.fourier_features
        self.fourier = nn.Parameter(torch.empty(features // 2).normal_()) if features else None
        self.linear_1 = nn.Linear(features + 1 if features else config.channels, width)
        self.linear_2 = nn.Linear(width, width)
        if config.num_classes:
            self.classes = nn.Embedding(config.num_classes, width)

    def forward(self, t, y=None):
        weights = self.linear_1.weight.dtype
        dtype = torch.float64 if weights is torch.float64 else torch.float32
        hidden = self.act(fused.linear(self.linear_1, self._features(t, dtype).to(weights)))
        embedding = fused.linear(self.linear_2, hidden)
        return F.silu(embedding if y is None else embedding + self.classes(y))

    def _features(self, t, dtype):
        if self.fourier is None:
            return sinusoidal_embedding(t, self.dim, **self.sinusoids, dtype=dtype)
        t = t.to(dtype)[:, None]
        angle = t * self.fourier.to(dtype) * 2 * math.pi
        return torch.cat([t, angle.sin(), angle.cos()], dim=1)


class ResBlock(nn.Module):
    """skip(x) + conv_2(dropout(norm_2(conv_1(norm_1(x)) + time))), norms with SiLU: [B, C_in, H, W] to [B, C, H, W].

    With scale_shift the embedding scales and shifts the second norm's result instead of being added before it.
    `resample` acts on the first norm's result and on x. counters are (rng, sample_ids) of the dropout, which the second
    norm carries out. In inference on the CPU each norm, its convolution and the sum after it are one op, where `fused`
    says so.
    """

    def __init__(self, in_channels, channels, embedding_width, *, norm, dropout=0.0, scale_shift=False, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm_1 = norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(embedding_width, 2 * channels if scale_shift else channels)
        self.norm_2 = norm(channels)
        self.dropout = Dropout(dropout)
        self.conv_2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x, embedding, counters=None):
        time = fused.linear(self.time, embedding)  # [B, C], or [B, 2C] with scale_shift
        h, norm = x, self.norm_1
        if self.resample is not None:
            h, x, norm = self.resample(norm(x)), self.resample(x), None
        add, film = (None, time.chunk(2, dim=1)) if self.scale_shift else (time, (None, None))
        if self._fuses(h):
            h = fused.conv(self.conv_1, h, norm, add=add)
            skip = fused.convolved(self.skip, x)
            return fused.conv(self.conv_2, h, self.norm_2, scale=film[0], shift=film[1], residual=skip)
        h = fused.convolved(self.conv_1, h if norm is None else joined.keeping_parts(norm, h))
        options = self.dropout.options(h, counters)
        options |= dict(scale=film[0], shift=film[1]) if self.scale_shift else dict(add=add)
        skip = joined.keeping_parts(self.skip, x)
        return fused.convolved(self.conv_2, self.norm_2(h, **options), residual=skip)

    def _fuses(self, x):
        dropping = self.dropout.training and self.dropout.p > 0
        return not dropping and fused.applies(x, self.conv_1, self.conv_2, norms=(self.norm_1, self.norm_2))


class ConvFirstBlock(nn.Module):
    """skip(x) + norm_2(conv_2(dropout(norm_1(conv_1(x); scale, shift)))), norms with SiLU: like `ResBlock` in its
    shapes.

    The embedding scales and shifts the first norm's result; that norm drops. Source: lucidrains,
    denoising-diffusion-pytorch 2.
    """

    def __init__(self, in_channels, channels, embedding_width, *, norm, dropout=0.0, conv=nn.Conv2d):
        super().__init__()
        self.conv_1 = conv(in_channels, channels, 3, padding=1)
        self.norm_1 = norm(channels)
        self.time = nn.Linear(embedding_width, 2 * channels)
        self.dropout = Dropout(dropout)
        self.conv_2 = conv(channels, channels, 3, padding=1)
        self.norm_2 = norm(channels)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x, embedding, counters=None):
        scale, shift = self.time(embedding).chunk(2, dim=1)
        h = joined.keeping_parts(functools.partial(fused.convolved, self.conv_1), x)
        h = self.norm_1(h, scale=scale, shift=shift, **self.dropout.options(x, counters))
        return self.norm_2(fused.convolved(self.conv_2, h)) + joined.keeping_parts(self.skip, x)


class StandardizedConv2d(nn.Conv2d):
    """A convolution by (weight - mean) / sqrt(var + 1e-5), mean and variance of each output channel.

    The eps is 1e-3 in half precision. Source: Qiao et al., "Weight standardization", 2019.
    """

    def forward(self, x):
        eps = 1e-5 if self.weight.dtype in (torch.float32, torch.float64) else 1e-3
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) * (var + eps).rsqrt(), self.bias)


def zeroed(layer):
    """The layer with its weight and bias at zero: a residual branch that begins as nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
