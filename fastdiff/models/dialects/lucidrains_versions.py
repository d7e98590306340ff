"""What the versions of lucidrains' `Unet` have, and how its weights tell them."""

import re

from . import options

OPTIONS = ("norm", "attention_norm", "downsample", "standardized", "linear_mean")
# The first version, and what it has of those, down to the next. 1.7.1 alone bounds the variance of its weights.
_VERSIONS = tuple(
    (first, dict(zip(OPTIONS, values, strict=True)))
    for first, *values in (
        ((0, 28), "group", "layer", "conv_4x4", True, True),
        ((0, 32), "group", "layer", "unshuffle", True, True),
        ((1, 7), "group", "rms", "unshuffle", True, True),
        ((1, 7, 2), "group", "rms", "unshuffle", False, True),
        ((1, 7, 4), "group", "rms", "unshuffle", False, False),
        ((2,), "rms", "rms", "unshuffle", False, False),
    )
)
HEADS_BEFORE_1_8 = dict(heads=4, head_channels=32)  # no options of the constructor


def is_wrapped(names):
    """Before 1.8: attention is Residual(PreNorm(...)), of 4 heads of 32 channels, linear in every level."""
    return any(name.startswith("mid_attn.fn.fn.") for name in names)


def range_of(shapes):
    """(the first version whose weights have such names and shapes, the first that has not)."""
    if is_wrapped(shapes):
        unshuffles = "downs.0.3.1.weight" in shapes
        return (0, 32) if unshuffles else (0, 28), (0, 32) if shapes.get("downs.0.3.weight", [0])[-1] == 4 else (1, 8)
    if "mid_attn.mem_kv" not in shapes:
        return (1, 8), (1, 9)
    return ((1, 9), (2,)) if "mid_block1.block1.norm.weight" in shapes else ((2,), (3,))


def options_of(shapes, version):
    """{option: value} of a checkpoint's version, which only those before 1.8 need."""
    first, end = range_of(shapes)
    number = first if version is None else _number(version)
    if not first <= number < end or number == (1, 7, 1):
        text = f"at least {_text(first)}, below {_text(end)}, and not 1.7.1"
        raise ValueError(f"version must be {text}, for these weights, got {version!r}")
    return [has for start, has in _VERSIONS if start <= number][-1]


def refuse_older(names):
    """Raises for networks of other parts: those before 0.28."""
    if any(re.search(r"\.block1\.block\.|\.ds_conv\.|\.fn\.norm\.b$|\.fn\.g$", name) for name in names):
        raise ValueError("dialect must be lucidrains since 0.28, got weights of an older version")


def refuse(config):
    """Raises where no version has such a network."""
    if wrapped := is_before_1_8(config):
        linear = dict(attention_resolutions=(), linear_attention_resolutions=config.resolutions)
        options.fixed(config, dict(HEADS_BEFORE_1_8, **linear), "lucidrains before 1.8")
    known = [has for start, has in _VERSIONS if (start < (2,) if wrapped else start >= (1, 7, 4))]
    mine = {name: getattr(config, name) for name in OPTIONS}
    if mine not in known or (config.norm == "rms" and not config.memory):
        text = ", ".join(f"{name} {value!r}" for name, value in {**mine, "memory": config.memory}.items())
        raise ValueError(f"dialect must be one that knows this network, got 'lucidrains': no version has {text}")


def is_before_1_8(config):
    """There the heads are no option of a level's: one number."""
    return not config.memory and isinstance(config.heads, int)


def _number(version):
    match = isinstance(version, str) and re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)  # as a number 1.10 is 1.1
    if not match:
        raise ValueError(f"version must be a version of denoising-diffusion-pytorch such as '1.5.0', got {version!r}")
    return tuple(int(part or 0) for part in match.groups())


def _text(number):
    return ".".join(map(str, number))
