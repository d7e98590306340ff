"""What `UNetConfig` refuses, by the option's name."""

import math
import numbers
import operator

_POSITIVE = ("image_size", "in_channels", "channels", "num_res_blocks", "groups", "stem_kernel", "out_kernel")
_POSITIVE_OR_NONE = ("out_channels", "num_classes", "fourier_features", "heads_up", "stem_channels", "image_width")
_BOOL = (
    "scale_shift", "low_res", "self_condition", "sin_first", "norm_first", "standardized", "middle_attention",
    "qkv_bias", "linear_mean",
)  # fmt: skip
_CHOICES = {
    "embedding_act": ("silu", "gelu"),
    "norm": ("group", "rms"),
    "attention_norm": ("group", "rms", "layer", None),
    "downsample": ("conv", "conv_asymmetric", "conv_4x4", "pool", "block", "unshuffle"),
    "upsample": ("conv", "nearest", "block"),
    "widen": ("block", "resample"),
    "qkv_order": ("qkv", "heads"),
    "pool": (None, "adaptive", "attention", "spatial", "spatial_v2"),
}


def normalize(config):
    """Ints become ints and sequences tuples; None becomes what it stands for where that is one number."""

    def put(name, value):
        object.__setattr__(config, name, value)

    for name in _POSITIVE:
        put(name, _positive(name, getattr(config, name)))
    for name in _POSITIVE_OR_NONE:
        if getattr(config, name) is not None:
            put(name, _positive(name, getattr(config, name)))
    put("channel_mult", tuple(_multiple(mult) for mult in _sequence("channel_mult", config.channel_mult)))
    for name in ("attention_resolutions", "attention_resolutions_up", "linear_attention_resolutions"):
        if getattr(config, name) is not None:
            put(name, _positives(name, getattr(config, name)))
    for name in ("heads", "head_channels"):
        value = getattr(config, name)
        if value is not None:
            put(name, _positives(name, value) if isinstance(value, tuple | list) else _positive(name, value))
    if config.image_width == config.image_size:
        put("image_width", None)
    if config.out_channels is None:
        put("out_channels", config.in_channels)


def check(config):
    _check_kinds(config)
    _check_numbers(config)
    _check_resolutions(config)
    _check_channels(config)
    _check_heads(config)
    _check_together(config)


def _check_kinds(config):
    for name in _BOOL:
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be a bool, got {getattr(config, name)!r}")
    for name, among in _CHOICES.items():
        if getattr(config, name) not in among:
            raise ValueError(f"{name} must be one of {', '.join(map(str, among))}, got {getattr(config, name)!r}")


def _check_numbers(config):
    if not config.channel_mult:
        raise ValueError("channel_mult must have at least one entry, got ()")
    if not _real(config.dropout) or not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout!r}")
    if not _real(config.norm_eps) or not 0 < config.norm_eps < 1:
        raise ValueError(f"norm_eps must be in (0, 1), got {config.norm_eps!r}")
    if not _real(config.theta) or not 1 < config.theta < math.inf:
        raise ValueError(f"theta must be finite and above 1, got {config.theta!r}")
    if isinstance(config.memory, bool) or not isinstance(config.memory, int) or config.memory < 0:
        raise ValueError(f"memory must be an int of at least 0, got {config.memory!r}")
    for name in ("stem_kernel", "out_kernel"):
        if getattr(config, name) % 2 == 0:
            raise ValueError(f"{name} must be odd, got {getattr(config, name)}")


def _check_resolutions(config):
    levels = len(config.channel_mult)
    factor = 2 ** (levels - 1)
    for name in ("image_size", "image_width"):
        if (getattr(config, name) or 0) % factor:
            raise ValueError(f"{name} must be divisible by {factor} for {levels} levels, got {getattr(config, name)}")
    for name in ("attention_resolutions", "attention_resolutions_up", "linear_attention_resolutions"):
        strange = set(getattr(config, name) or ()) - set(config.resolutions)
        if strange:
            among = ", ".join(map(str, config.resolutions))
            raise ValueError(f"{name} must be among {among}, got {min(strange)}")


def _check_channels(config):
    if config.channels % 2 or config.channels < 4:
        raise ValueError(f"channels must be even and at least 4, got {config.channels}")
    if not _real(config.freq_shift) or not 0 <= config.freq_shift < config.channels // 2:
        raise ValueError(f"freq_shift must be in [0, channels / 2), got {config.freq_shift!r}")
    if config.fourier_features and config.fourier_features % 2:
        raise ValueError(f"fourier_features must be even, got {config.fourier_features}")
    for mult, width in zip(config.channel_mult, config.widths, strict=True):
        if width < 1 or abs(config.channels * mult - width) > 1e-6 * width:
            raise ValueError(f"channel_mult must give whole channels, got {mult} of {config.channels}")
    if "group" in (config.norm, config.attention_norm):
        for width in {*config.widths, config.stem}:
            if width % config.groups:
                raise ValueError(f"groups must divide the channels of every level, {width} here, got {config.groups}")


def _check_heads(config):
    levels = len(config.channel_mult)
    for name in ("heads", "head_channels"):
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != levels:
            raise ValueError(f"{name} must be one per level, {levels} here, got {len(value)}")
    if config.heads and config.head_channels:
        return
    attending = {(levels - 1, config.widths[-1])}
    for up in (False, True):
        attending |= {(i, w) for i, w in enumerate(config.block_widths) if config.attention_at(i, up)}
    name = "head_channels" if config.head_channels else "heads"
    for level, width in attending:
        value = getattr(config, name)
        value = value[level] if isinstance(value, tuple) else value
        for count in (value, config.heads_up if name == "heads" else None):
            if width % (count or 1):
                raise ValueError(f"{name} must divide {width} channels, got {count}")


def _check_together(config):
    if not config.norm_first and not config.scale_shift:
        raise ValueError("scale_shift must be True where norm_first is False, got False")
    if (config.widen == "resample") != (config.downsample in ("unshuffle", "conv_4x4")):
        text = "downsample must be unshuffle or conv_4x4 just where widen is resample"
        raise ValueError(f"{text}, got {config.downsample!r}")
    if config.widen == "resample" and (config.upsample != "conv" or config.pool or config.norm_first):
        raise ValueError("upsample must be conv, pool None and norm_first False where widen is resample")
    blocks = "block" in (config.downsample, config.upsample)
    if not config.norm_first and blocks:
        raise ValueError("norm_first must be True where blocks resample, got False")
    if config.norm_first and config.standardized:
        raise ValueError("standardized must be False where norm_first is True, got True")
    if config.pool == "attention" and not isinstance(config.head_channels, int):
        raise ValueError(f"head_channels must be an int for an attention pool, got {config.head_channels!r}")
    if config.pool == "attention" and config.image_width not in (None, config.image_size):
        raise ValueError(f"image_width must be image_size for an attention pool, got {config.image_width}")
    if config.low_res and config.self_condition:
        raise ValueError("self_condition must be False where low_res is True, got True")


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


def _multiple(value):
    """A positive int, or a fraction such as 0.5."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        if not 0 < value < math.inf:
            raise ValueError(f"channel_mult must be positive, got {value!r}")
        return int(value) if value == int(value) else float(value)
    return _positive("channel_mult", value)


def _sequence(name, values):
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of positive ints, got {values!r}")
    return values


def _positives(name, values):
    return tuple(_positive(name, value) for value in _sequence(name, values))
