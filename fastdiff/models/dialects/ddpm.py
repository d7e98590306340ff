"""DDPM's published network as pesser's and ermongroup's PyTorch ports name it: `Model` of pytorch_diffusion and
ddim."""

from . import options
from .mapping import nested, one

_BLOCK = {
    "norm_1": one("norm1"),
    "conv_1": one("conv1"),
    "time": one("temb_proj"),
    "norm_2": one("norm2"),
    "conv_2": one("conv2"),
    "skip": one("nin_shortcut", "conv2d"),
}
_ATTENTION = {"norm": one("norm"), "qkv": (("q", "k", "v"), "conv2d"), "out": one("proj_out", "conv2d")}
FIXED = dict(
    sin_first=True, freq_shift=1, theta=10000, fourier_features=None, embedding_act="silu", norm="group",
    norm_first=True, attention_norm=None, norm_eps=1e-6, groups=32, widen="block", attention_resolutions_up=None,
    linear_attention_resolutions=(), middle_attention=True, qkv_bias=True, memory=0, stem_kernel=3, out_kernel=3,
    standardized=False, self_condition=False, low_res=False, pool=None, qkv_order="qkv", heads=None, head_channels=None,
    heads_up=None, stem_channels=None, num_classes=None, scale_shift=False,
)  # fmt: skip


def recognizes(names):
    return "temb.dense.0.weight" in names


def infer(shapes, given):
    """The `UNetConfig` of a checkpoint's shapes: image_size has to be given, dropout may be."""
    given = options.checked(given, ("image_size", "dropout"))
    options.require(given, ["image_size"])
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("down."))
    channels = shapes["temb.dense.0.weight"][1]
    widths = [shapes[f"down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    attending = [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in shapes]
    conv = levels == 1 or "down.0.downsample.conv.weight" in shapes
    found = dict(
        **FIXED, image_size=given["image_size"], in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0], channels=channels, channel_mult=[w / channels for w in widths],
        num_res_blocks=len([i for i in range(100) if f"down.0.block.{i}.conv1.weight" in shapes]),
        attention_resolutions=[given["image_size"] >> i for i in attending], dropout=given.get("dropout", 0.0),
        downsample="conv_asymmetric" if conv else "pool", upsample="conv" if conv else "nearest",
    )  # fmt: skip
    return options.build(found, {})


def table(config):
    """{our module or weight: (their names, form)}; their up.0 is the finest level, ours the coarsest."""
    names = {"time.linear_1": one("temb.dense.0"), "time.linear_2": one("temb.dense.1")}
    names |= {name: one(name) for name in ("conv_in", "norm_out", "conv_out")}
    names |= nested("middle.block_1", "mid.block_1", _BLOCK) | nested("middle.block_2", "mid.block_2", _BLOCK)
    names |= nested("middle.attention", "mid.attn_1", _ATTENTION)
    levels = len(config.channel_mult)
    for side, count in (("down", config.num_res_blocks), ("up", config.num_res_blocks + 1)):
        for level in range(levels):
            theirs = f"{side}.{level if side == 'down' else levels - 1 - level}"
            for i in range(count):
                names |= nested(f"{side}.{level}.blocks.{i}", f"{theirs}.block.{i}", _BLOCK)
                names |= nested(f"{side}.{level}.attentions.{i}", f"{theirs}.attn.{i}", _ATTENTION)
            names[f"{side}.{level}.{side}sample"] = one(f"{theirs}.{side}sample.conv")
    return names


def refuse(config):
    """Raises where a network is none of these ports'."""
    resampling = dict(
        downsample=options.OneOf("conv_asymmetric", "pool"),
        upsample="nearest" if config.downsample == "pool" else "conv",
        stem_channels=options.OneOf(None, config.channels), heads=options.OneOf(None, 1),
        num_classes=None,
    )  # fmt: skip
    options.fixed(config, {**FIXED, **resampling}, "ddpm")
