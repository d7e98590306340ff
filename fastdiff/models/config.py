"""What a U-Net is built from, checked."""

import dataclasses
import numbers
import operator
from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """Options of `fastdiff.UNet`; the defaults are DDPM's network for 32x32 images.

    Raises ValueError or TypeError that names the option. Source: Ho et al., "Denoising diffusion probabilistic models",
    2020, appendix B.
    """

    image_size: int = 32  # height and width; divisible by 2 once per level but the last
    in_channels: int = 3
    out_channels: int | None = None  # None: in_channels
    channels: int = 128  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)  # times channels, one per level of resolution
    num_res_blocks: int = 2  # per level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (16,)  # heights of the levels with attention; the middle always has it
    heads: int | None = None  # of attention; None: channels / head_channels, or 1
    head_channels: int | None = None  # width of a head, instead of heads
    dropout: float = 0.0
    groups: int = 32  # of each GroupNorm; divides the channels of every level
    norm_eps: float = 1e-6
    scale_shift: bool = False  # the time embedding scales and shifts the second norm instead of preceding it

    def __post_init__(self):
        for name in ("image_size", "in_channels", "channels", "num_res_blocks", "groups"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        for name in ("channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, _positives(name, getattr(self, name)))
        for name in ("heads", "head_channels"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _positive(name, getattr(self, name)))
        out_channels = self.in_channels if self.out_channels is None else _positive("out_channels", self.out_channels)
        object.__setattr__(self, "out_channels", out_channels)
        self._check_numbers()
        self._check_resolutions()
        self._check_channels()

    @property
    def widths(self):
        """Channels of each level."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    @property
    def resolutions(self):
        """Height of each level."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    def heads_of(self, width):
        """Attention heads of a layer that wide."""
        return width // self.head_channels if self.head_channels else self.heads or 1

    def to_dict(self):
        """Plain numbers and lists, for JSON."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def _check_numbers(self):
        if not self.channel_mult:
            raise ValueError("channel_mult must have at least one entry, got ()")
        if not _real(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if not _real(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps must be in (0, 1), got {self.norm_eps!r}")
        if not isinstance(self.scale_shift, bool):
            raise TypeError(f"scale_shift must be a bool, got {self.scale_shift!r}")
        if self.heads and self.head_channels:
            raise ValueError(f"head_channels must be None where heads is given, got {self.head_channels}")

    def _check_resolutions(self):
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.image_size % factor:
            levels = len(self.channel_mult)
            raise ValueError(f"image_size must be divisible by {factor} for {levels} levels, got {self.image_size}")
        strange = set(self.attention_resolutions) - set(self.resolutions)
        if strange:
            among = ", ".join(map(str, self.resolutions))
            raise ValueError(f"attention_resolutions must be among {among}, got {min(strange)}")

    def _check_channels(self):
        if self.channels % 2 or self.channels < 4:
            raise ValueError(f"channels must be even and at least 4, got {self.channels}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"groups must divide the channels of every level, {width} here, got {self.groups}")
        levels = zip(self.widths, self.resolutions, strict=True)
        attending = {self.widths[-1], *(width for width, size in levels if size in self.attention_resolutions)}
        name = "head_channels" if self.head_channels else "heads"
        for width in attending:
            if width % (getattr(self, name) or 1):
                raise ValueError(f"{name} must divide {width} channels, got {getattr(self, name)}")


def _real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _positive(name, value):
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a positive int, got {value!r}") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return count


def _positives(name, values):
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of positive ints, got {values!r}")
    return tuple(_positive(name, value) for value in values)
