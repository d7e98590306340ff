"""lucidrains' denoising-diffusion-pytorch, `Unet`: version 2, and from 0.28 on those with GroupNorm in the blocks."""

from . import lucidrains_versions as versions
from . import options
from .mapping import nested, one

_GROUP = {"norm_1": one("block1.norm"), "norm_2": one("block2.norm")}
_RMS = {"norm_1.weight": one("block1.norm.g", "gain"), "norm_2.weight": one("block2.norm.g", "gain")}
_BLOCK = {
    "conv_1": one("block1.proj"),
    "time": one("mlp.1"),
    "conv_2": one("block2.proj"),
    "skip": one("res_conv"),
}
_ATTENTION = {
    "norm.weight": one("norm.g", "gain"),
    "memory": one("mem_kv"),
    "qkv": one("to_qkv", "conv2d"),
    "out": one("to_out", "conv2d"),
}
_LINEAR = {**_ATTENTION, "out": one("to_out.0", "conv2d"), "norm_out.weight": one("to_out.1.g", "gain")}
FIXED = dict(
    num_classes=None, low_res=False, sin_first=True, freq_shift=1, embedding_act="gelu", norm_first=False,
    upsample="conv", widen="resample", attention_resolutions_up=None, middle_attention=True, qkv_order="qkv",
    qkv_bias=False, heads_up=None, stem_kernel=7, out_kernel=1, pool=None, num_res_blocks=2, scale_shift=True,
)  # fmt: skip
_OPTIONS = ("image_size", "dropout", "sinusoidal_pos_emb_theta", "resnet_block_groups", "self_condition", "attn_heads",
            "version")  # fmt: skip


def recognizes(names):
    """Those too old to be read among them, to say so."""
    return "mid_attn.fn.fn.to_qkv.weight" in names or {"mid_attn.to_qkv.weight", "init_conv.weight"} <= {*names}


def infer(shapes, given):
    """The `UNetConfig` of a checkpoint's shapes.

    image_size has to be given; of networks before 1.9 also attn_heads, before 1.8 the version instead, which files of
    their Trainer hold.
    """
    given = options.checked(given, _OPTIONS)
    versions.refuse_older(shapes)
    inputs, outputs = shapes["init_conv.weight"][1], shapes["final_conv.weight"][0]
    options.require(given, _needed(shapes, inputs, outputs))
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("downs."))
    channels = shapes["time_mlp.3.weight"][0] // 4
    heights = [given["image_size"] >> i for i in range(levels)]
    linear = [any(f"downs.{i}.2.{name}to_out.1.g" in shapes for name in ("", "fn.fn.")) for i in range(levels)]
    widths = [_width(shapes, i) for i in range(levels)]
    self_condition = given.get("self_condition", inputs == 2 * outputs)
    found = dict(
        **FIXED, **versions.options_of(shapes, given.get("version")), **_heads(shapes, given, linear),
        image_size=given["image_size"], in_channels=inputs // 2 if self_condition else inputs,
        out_channels=outputs, self_condition=self_condition, channels=channels,
        channel_mult=[width / channels for width in widths], stem_channels=shapes["init_conv.weight"][0],
        attention_resolutions=[h for h, kind in zip(heights, linear, strict=True) if not kind],
        linear_attention_resolutions=[h for h, kind in zip(heights, linear, strict=True) if kind],
        dropout=given.get("dropout", 0.0), theta=given.get("sinusoidal_pos_emb_theta", 10000),
        fourier_features=2 * shapes["time_mlp.0.weights"][0] if "time_mlp.0.weights" in shapes else None,
        groups=given.get("resnet_block_groups", 8), norm_eps=1e-5,
    )  # fmt: skip
    return options.build(found, {})


def _needed(shapes, inputs, outputs):
    """Names of the options that have to be given."""
    needed = ["image_size"]
    if versions.is_wrapped(shapes):
        needed.append("version")
    elif "mid_attn.mem_kv" not in shapes:
        needed.append("attn_heads")
    if inputs % 2 == 0 and inputs == outputs:
        needed.append("self_condition")
    return needed


def _heads(shapes, given, linear):
    """heads, head_channels and memory: of each level, but before 1.8."""
    if versions.is_wrapped(shapes):
        return versions.HEADS_BEFORE_1_8
    if "mid_attn.mem_kv" in shapes:
        memory = [shapes[f"downs.{i}.2.mem_kv"][1:] for i in range(len(linear))]
        widths = [m[1] if kind else m[2] for m, kind in zip(memory, linear, strict=True)]
        return dict(heads=[m[0] for m in memory], head_channels=widths, memory=memory[0][2 if linear[0] else 1])
    heads = given["attn_heads"]
    heads = [heads] * len(linear) if isinstance(heads, int) else list(heads)
    inner = [shapes[f"downs.{i}.2.to_qkv.weight"][0] // 3 for i in range(len(linear))]
    if len(heads) != len(inner) or any(width % count for width, count in zip(inner, heads, strict=True)):
        raise ValueError(f"attn_heads must be one per level that divides {inner} channels, got {given['attn_heads']}")
    return dict(heads=heads, head_channels=[width // count for width, count in zip(inner, heads, strict=True)])


def _width(shapes, level):
    """Channels after a level's resampling."""
    name = f"downs.{level}.3.1.weight"
    return shapes[name if name in shapes else f"downs.{level}.3.weight"][0]


def table(config):
    """{our module or weight: (their names, form)}"""
    block = {**_BLOCK, **(_RMS if config.norm == "rms" else _GROUP)}
    full, linear = _ATTENTION, _LINEAR
    if versions.is_before_1_8(config):
        full, linear = _wrapped(full), _wrapped(linear)
    names = {"time.linear_1": one("time_mlp.1"), "time.linear_2": one("time_mlp.3")}
    names |= {"time.fourier": one("time_mlp.0.weights"), "conv_in": one("init_conv"), "conv_out": one("final_conv")}
    names |= nested("middle.block_1", "mid_block1", block) | nested("middle.block_2", "mid_block2", block)
    names |= nested("middle.attention", "mid_attn", full) | nested("block_out", "final_res_block", block)
    levels = len(config.channel_mult)
    for place in range(levels):
        for side, level in (("down", place), ("up", levels - 1 - place)):
            theirs = f"{side}s.{place}"
            for i in range(2):
                names |= nested(f"{side}.{place}.blocks.{i}", f"{theirs}.{i}", block)
            attention = linear if config.attention_at(level) == "linear" else full
            names |= nested(f"{side}.{place}.attentions.1", f"{theirs}.2", attention)
        down, up = f"downs.{place}.3", f"ups.{place}.3"
        last = place == levels - 1
        whole = last or config.downsample == "conv_4x4"
        names[f"down.{place}.downsample"] = one(down) if whole else one(f"{down}.1", "unshuffle")
        names[f"up.{place}.upsample"] = one(up if last else f"{up}.1")
    return names


def _wrapped(attention):
    """Its names within Residual(PreNorm(...))."""
    prefixes = {name: "fn." if name.startswith("norm.") else "fn.fn." for name in attention}
    return {ours: (tuple(prefixes[ours] + name for name in names), form) for ours, (names, form) in attention.items()}


def refuse(config):
    """Raises where a network is none of lucidrains'."""
    options.fixed(config, FIXED, "lucidrains")
    versions.refuse(config)
