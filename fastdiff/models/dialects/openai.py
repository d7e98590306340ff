"""improved-diffusion and guided-diffusion: `UNetModel`, `SuperResModel`, `EncoderUNetModel`.

Options are those of their constructors. `guided` differs from `openai` in what has to be asked: its attention packs q,
k and v in either order, which no shape tells.
"""

import functools
from types import SimpleNamespace

from . import options
from .mapping import nested, one
from .openai_layout import Layout

_BLOCK = {
    "norm_1": one("in_layers.0"),
    "conv_1": one("in_layers.2"),
    "time": one("emb_layers.1"),
    "norm_2": one("out_layers.0"),
    "conv_2": one("out_layers.3"),
    "skip": one("skip_connection"),
}
_ATTENTION = {"norm": one("norm"), "qkv": one("qkv", "conv1d"), "out": one("proj_out", "conv1d")}
_POOLS = {
    "adaptive": {"norm": one("0"), "out": one("3", "conv2d")},
    "attention": {
        "norm": one("0"),
        "position": one("2.positional_embedding"),
        "qkv": one("2.qkv_proj", "conv1d"),
        "out": one("2.c_proj", "conv1d"),
    },
    "spatial": {"out_1": one("0"), "out_2": one("2")},
    "spatial_v2": {"out_1": one("0"), "norm": one("1"), "out_2": one("3")},
}
# What every network of this dialect has, and what its options may be here.
FIXED = dict(
    sin_first=False, freq_shift=0, theta=10000, fourier_features=None, embedding_act="silu", norm="group",
    norm_first=True, attention_norm=None, norm_eps=1e-5, groups=32, widen="block", attention_resolutions_up=None,
    linear_attention_resolutions=(), middle_attention=True, qkv_bias=True, memory=0, stem_kernel=3, out_kernel=3,
    standardized=False, self_condition=False,
)  # fmt: skip
_SAME = {  # options of the constructors that the shapes tell too
    "in_channels": "in_channels", "model_channels": "channels", "out_channels": "out_channels",
    "num_res_blocks": "num_res_blocks", "channel_mult": "channel_mult", "num_classes": "num_classes",
    "use_scale_shift_norm": "scale_shift", "pool": "pool",
}  # fmt: skip
_OPTIONS = (
    "image_size", "num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order", "dropout",
    "low_res", *_SAME, "attention_resolutions", "conv_resample", "resblock_updown",
)  # fmt: skip


def dialect(guided):
    """This module as one of the two dialects."""
    return SimpleNamespace(
        recognizes=recognizes,
        infer=functools.partial(infer, guided=guided),
        table=table,
        refuse=functools.partial(refuse, guided=guided),
    )


def recognizes(names):
    return "time_embed.0.weight" in names and "input_blocks.0.0.weight" in names


def is_guided(names):
    """True where only guided-diffusion can have written it: resampling blocks, or the encoder half alone."""
    names = set(names)
    shortened = not any(name.startswith("output_blocks.") for name in names)
    block = any(f"output_blocks.{i}.{j}.in_layers.0.weight" in names for i in range(100) for j in (1, 2))
    return shortened or block


def infer(shapes, given, guided):
    """The `UNetConfig` of a checkpoint's shapes and the options given by their names."""
    given = options.checked(given, _OPTIONS)
    options.require(given, _needed(shapes, given, guided))
    layout = Layout(shapes, given)
    inputs, in_channels = shapes["input_blocks.0.0.weight"][1], _in_channels(shapes, given)
    found = dict(
        **FIXED, image_size=given["image_size"], in_channels=in_channels, out_channels=layout.out_channels,
        low_res=inputs == 2 * in_channels, channels=layout.channels, channel_mult=layout.channel_mult,
        num_res_blocks=layout.num_res_blocks, attention_resolutions=layout.attention_resolutions,
        stem_channels=layout.stem, scale_shift=layout.scale_shift,
        downsample=layout.downsample, upsample=layout.upsample,
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        pool=layout.pool, dropout=given.get("dropout", 0.0), **_heads(given),
        qkv_order="qkv" if given.get("use_new_attention_order") else "heads",
    )  # fmt: skip
    return options.build(found, _in_our_names(given))


def _needed(shapes, given, guided):
    """Names of the options that have to be given."""
    names = ["image_size"]
    if given.get("num_head_channels", -1) == -1 and "num_heads" not in given:
        names.append("num_heads or num_head_channels")
    if guided and "use_new_attention_order" not in given:
        names.append("use_new_attention_order")
    inputs, outputs = shapes["input_blocks.0.0.weight"][1], shapes.get("out.2.weight", [0])[0]
    if inputs % 2 == 0 and outputs in (inputs, inputs // 2) and not {"low_res", "in_channels"} & {*given}:
        names.append("low_res (whether half of the input is a smaller image)")
    return names


def _in_channels(shapes, given):
    inputs = shapes["input_blocks.0.0.weight"][1]
    return given.get("in_channels", inputs // 2 if given.get("low_res") else inputs)


def table(config):
    """{our module or weight: (their names, form)}"""
    names = {"time.linear_1": one("time_embed.0"), "time.linear_2": one("time_embed.2")}
    names |= {"time.classes": one("label_emb"), "conv_in": one("input_blocks.0.0")}
    names |= nested("middle.block_1", "middle_block.0", _BLOCK) | nested("middle.block_2", "middle_block.2", _BLOCK)
    names |= nested("middle.attention", "middle_block.1", _ATTENTION)
    place = 0
    for level in range(len(config.channel_mult)):
        for i in range(config.num_res_blocks):
            place += 1
            names |= nested(f"down.{level}.blocks.{i}", f"input_blocks.{place}.0", _BLOCK)
            names |= nested(f"down.{level}.attentions.{i}", f"input_blocks.{place}.1", _ATTENTION)
        place += 1
        names |= _resampling(f"down.{level}.downsample", f"input_blocks.{place}.0", "op")
    if config.pool:
        return names | nested("pool", "out", _POOLS[config.pool])
    return names | _table_up(config) | {"norm_out": one("out.0"), "conv_out": one("out.2")}


def _table_up(config):
    names, place = {}, 0
    for position, level in enumerate(reversed(range(len(config.channel_mult)))):
        for i in range(config.num_res_blocks + 1):
            names |= nested(f"up.{position}.blocks.{i}", f"output_blocks.{place}.0", _BLOCK)
            names |= nested(f"up.{position}.attentions.{i}", f"output_blocks.{place}.1", _ATTENTION)
            place += 1
        index = 2 if config.attention_at(level) else 1
        names |= _resampling(f"up.{position}.upsample", f"output_blocks.{place - 1}.{index}", "conv")
    return names


def refuse(config, guided):
    """Raises where a network is none of OpenAI's."""
    expected = dict(FIXED)
    if not guided:
        expected.update(qkv_order="heads", pool=None)
    options.fixed(config, expected, "guided" if guided else "openai")
    down, up = config.downsample, config.upsample
    if (down, up) not in (("conv", "conv"), ("pool", "nearest"), ("block", "block")):
        raise ValueError(f"dialect must be one that resamples so, got an OpenAI dialect: {down} and {up}")


def _resampling(ours, theirs, conv):
    return {ours: one(f"{theirs}.{conv}"), **nested(ours, theirs, _BLOCK)}


def _heads(given):
    if given.get("num_head_channels", -1) != -1:
        return dict(heads=None, head_channels=given["num_head_channels"], heads_up=None)
    upsample = given.get("num_heads_upsample", -1)
    return dict(heads=given["num_heads"], head_channels=None, heads_up=None if upsample == -1 else upsample)


def _in_our_names(given):
    """What was given beyond need, to be compared with what the shapes say."""
    found = {_SAME[name]: value for name, value in given.items() if name in _SAME}
    if "attention_resolutions" in given:  # factors of the full size
        found["attention_resolutions"] = tuple(given["image_size"] // f for f in given["attention_resolutions"])
    if given.get("resblock_updown"):
        found["downsample"] = "block"
    elif "conv_resample" in given:
        found["downsample"] = "conv" if given["conv_resample"] else "pool"
    return found
