"""From one resolution to the next, called with (x, embedding, counters); a ResBlock that resamples is one of them."""

import torch.nn.functional as F
from torch import nn

from .. import ops
from . import fused


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2: [B, C, H, W] to [B, C, H/2, W/2].

    A pixel of zeros surrounds x; where asymmetric, it lies to the right and below alone.
    """

    def __init__(self, channels, asymmetric=False):
        super().__init__(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x, embedding=None, counters=None):
        x = x if self.padding[0] else F.pad(x, (0, 1, 0, 1))
        y = fused.product(self, x, kind=Downsample)
        return super().forward(x) if y is None else y


class Unshuffle(nn.Conv2d):
    """1x1 convolution of the 2x2 pixels that become one, as a 2x2 one of stride 2: [B, C, H, W] to [B, D, H/2, W/2]."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 2, stride=2)

    def forward(self, x, embedding=None, counters=None):
        return super().forward(x)


class Shrink(nn.Conv2d):
    """4x4 convolution of stride 2, a pixel of zeros around x: [B, C, H, W] to [B, D, H/2, W/2]."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x, embedding=None, counters=None):
        return super().forward(x)


class Upsample(nn.Conv2d):
    """Nearest neighbours, then a 3x3 convolution: [B, C, H, W] to [B, D, 2H, 2W]."""

    def __init__(self, channels, out_channels=None):
        super().__init__(channels, out_channels or channels, 3, padding=1)

    def forward(self, x, embedding=None, counters=None):
        x = nearest(x)
        if type(self) is Upsample and not self.training and fused.inference(x) and fused.takes(self.weight, x):
            return fused.conv(self, x)
        if fused.trains(self, x, Upsample):
            return ops.conv3x3(x, self.weight, self.bias)
        return super().forward(x)


class Widen(nn.Conv2d):
    """3x3 convolution where a level changes the width but not the resolution: [B, C, H, W] to [B, D, H, W]."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x, embedding=None, counters=None):
        return super().forward(x)


class Pool(nn.Module):
    """Means of 2x2 pixels: [B, C, H, W] to [B, C, H/2, W/2]."""

    def forward(self, x, embedding=None, counters=None):
        return F.avg_pool2d(x, 2)


class Nearest(nn.Module):
    """Each pixel four times: [B, C, H, W] to [B, C, 2H, 2W]."""

    def forward(self, x, embedding=None, counters=None):
        return nearest(x)


def nearest(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
