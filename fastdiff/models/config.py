"""What a U-Net is built from, checked."""

import dataclasses
from dataclasses import dataclass

from . import checks


@dataclass(frozen=True)
class UNetConfig:
    """Options of `fastdiff.UNet`; the defaults are DDPM's network for 32x32 images.

    Raises ValueError or TypeError that names the option. Source: Ho et al., "Denoising diffusion probabilistic models",
    2020, appendix B; Nichol and Dhariwal 2021 (scale_shift, learned variances); Dhariwal and Nichol 2021, sections 3
    and 4 (heads by channels, resampling blocks, classes, the classifier).
    """

    image_size: int = 32  # height; divisible by 2 once per level but the last
    image_width: int | None = None  # as image_size; None: image_size
    in_channels: int = 3  # of x alone
    out_channels: int | None = None  # None: in_channels; twice as many for learned variances
    channels: int = 128  # of the first level, and of the time embedding before its two linear layers
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)  # times channels, one per level of resolution
    num_res_blocks: int = 2  # per level on the way down; one more on the way up, but for widen="resample"
    attention_resolutions: tuple[int, ...] = (16,)  # heights of the levels with attention; the middle has it anyhow
    heads: int | tuple[int, ...] | None = None  # of attention, or one per level; None: width / head_channels, or 1
    head_channels: int | tuple[int, ...] | None = None  # width of a head; with heads, they need not fill the width
    dropout: float = 0.0
    groups: int = 32  # of each GroupNorm; divides the channels of every level
    norm_eps: float = 1e-6
    scale_shift: bool = False  # the time embedding scales and shifts the second norm instead of preceding it

    # Inputs beside x and t.
    num_classes: int | None = None  # labels y, whose embedding is added to the time's
    low_res: bool = False  # a smaller image, enlarged bilinearly, is concatenated after x
    self_condition: bool = False  # an earlier estimate of x_0, or zeros, is concatenated before x

    # The time embedding.
    sin_first: bool = True  # [sin | cos], or [cos | sin]
    freq_shift: float = 1  # frequencies theta^(-i / (half - freq_shift)), i < half = channels / 2
    theta: float = 10000
    fourier_features: int | None = None  # so many learned or random sinusoids in place of those
    embedding_act: str = "silu"  # between the two linear layers: silu or gelu

    # The blocks.
    norm: str = "group"  # group, or rms: x / |x| * sqrt(channels) * weight
    norm_first: bool = True  # norm, SiLU, convolution; or convolution, norm, SiLU (with scale_shift in the first norm)
    standardized: bool = False  # the 3x3 convolutions' weights have mean 0 and variance 1 per output channel
    downsample: str = "conv"  # conv, conv_asymmetric (padded right, below), conv_4x4, pool (2x2 mean), block, unshuffle
    upsample: str = "conv"  # conv (after nearest neighbours), nearest, or block
    widen: str = "block"  # what changes the width: a level's first block, or the resampling, which then is no skip

    # Attention.
    attention_resolutions_up: tuple[int, ...] | None = None  # on the way up; None: as on the way down
    linear_attention_resolutions: tuple[int, ...] = ()  # heights of the levels with linear attention
    middle_attention: bool = True
    attention_norm: str | None = None  # as norm, or layer: of a pixel's channels, without bias; None: norm
    linear_mean: bool = False  # linear attention divides its values by their number
    qkv_order: str = "qkv"  # of channels: qkv (all q, then k, then v), or heads (a head's q, k, v, then the next's)
    qkv_bias: bool = True
    heads_up: int | None = None  # on the way up; None: heads
    memory: int = 0  # learned keys and values beside those of the map

    # The ends.
    stem_channels: int | None = None  # of the first convolution; None: channels
    stem_kernel: int = 3
    out_kernel: int = 3
    pool: str | None = None  # the encoder alone, to logits [B, out_channels]: adaptive, attention, spatial, spatial_v2

    def __post_init__(self):
        checks.normalize(self)
        checks.check(self)

    @property
    def widths(self):
        """Channels of each level."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    @property
    def stem(self):
        """Channels of the first convolution's result."""
        return self.channels if self.stem_channels is None else self.stem_channels

    @property
    def resolutions(self):
        """Height of each level."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    @property
    def total_in_channels(self):
        """Channels of the first convolution's input: x and what is concatenated to it."""
        return self.in_channels * (1 + self.low_res + self.self_condition)

    @property
    def block_widths(self):
        """Channels of each level's blocks on the way down: those before the resampling where that changes them."""
        return self.widths if self.widen == "block" else (self.stem, *self.widths[:-1])

    def heads_of(self, width, level=-1, up=False):
        """Attention heads of a layer that wide."""
        heads, head_channels = (of_level(value, level) for value in (self.heads, self.head_channels))
        if up and self.heads_up:
            return self.heads_up
        return heads or (width // head_channels if head_channels else 1)

    def inner_width_of(self, width, level=-1, up=False):
        """Width of all heads together: the layer's own, unless both heads and head_channels are given."""
        head_channels = of_level(self.head_channels, level)
        return self.heads_of(width, level, up) * head_channels if self.heads and head_channels else width

    def attention_at(self, level, up=False):
        """ "full", "linear" or None: the attention of that level."""
        full = self.attention_resolutions
        if up and self.attention_resolutions_up is not None:
            full = self.attention_resolutions_up
        height = self.resolutions[level]
        return "full" if height in full else "linear" if height in self.linear_attention_resolutions else None

    def to_dict(self):
        """Plain numbers, strings and lists, for JSON."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def of_level(value, level):
    """The level's own of a tuple, or the one value for all."""
    return value[level] if isinstance(value, tuple) else value
