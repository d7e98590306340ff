"""diffusers' config.json: what it says of a `UNet`, and the one that says it."""

from . import options

# The constructor's arguments and defaults.
DEFAULTS = dict(
    sample_size=None, in_channels=3, out_channels=3, center_input_sample=False, time_embedding_type="positional",
    time_embedding_dim=None, freq_shift=0, flip_sin_to_cos=True,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    mid_block_type="UNetMidBlock2D",
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(224, 448, 672, 896), layers_per_block=2, mid_block_scale_factor=1, downsample_padding=1,
    downsample_type="conv", upsample_type="conv", dropout=0.0, act_fn="silu", attention_head_dim=8, norm_num_groups=32,
    attn_norm_num_groups=None, norm_eps=1e-5, resnet_time_scale_shift="default", add_attention=True,
    class_embed_type=None, num_class_embeds=None, num_train_timesteps=None,
)  # fmt: skip
# What a `UNet` has one form of.
_REQUIRED = dict(
    center_input_sample=(False,), time_embedding_type=("positional",), mid_block_type=("UNetMidBlock2D",),
    mid_block_scale_factor=(1,), act_fn=("silu", "swish"), class_embed_type=(None,), downsample_padding=(0, 1),
    resnet_time_scale_shift=("default", "scale_shift"),
)  # fmt: skip
_DOWN = {"DownBlock2D": "conv", "AttnDownBlock2D": None, "ResnetDownsampleBlock2D": "block"}
_UP = {"UpBlock2D": "conv", "AttnUpBlock2D": None, "ResnetUpsampleBlock2D": "block"}
FIXED = dict(
    theta=10000, fourier_features=None, embedding_act="silu", norm="group", norm_first=True, attention_norm=None,
    widen="block", linear_attention_resolutions=(), qkv_bias=True, memory=0, stem_kernel=3, out_kernel=3,
    standardized=False, self_condition=False, low_res=False, pool=None, qkv_order="qkv", heads_up=None,
)  # fmt: skip


def infer(shapes, given):
    """The `UNetConfig` of a config.json, or of some of its entries where there is no more than the weights."""
    given = {name: value for name, value in dict(given or {}).items() if not name.startswith("_")}
    if "block_out_channels" not in given:
        given = {**_from_shapes(shapes), **_told(given)}
    given = options.checked(given, DEFAULTS)
    options.require({name: 1 for name, value in given.items() if value is not None}, ["sample_size"])
    values = {**DEFAULTS, **given}
    _check(values)
    size, widths = values["sample_size"], values["block_out_channels"]
    size, width = (size, None) if isinstance(size, int) else size
    levels = len(widths)
    down = [size >> i for i in range(levels) if values["down_block_types"][i].startswith("Attn")]
    up = [size >> (levels - 1 - i) for i in range(levels) if values["up_block_types"][i].startswith("Attn")]
    asymmetric = values["downsample_padding"] == 0
    downsample = _resampling(values, "down")
    found = dict(
        **FIXED, image_size=size, image_width=width, in_channels=values["in_channels"],
        out_channels=values["out_channels"], channels=widths[0], channel_mult=[width / widths[0] for width in widths],
        num_res_blocks=values["layers_per_block"], attention_resolutions=down,
        attention_resolutions_up=None if sorted(up) == sorted(down) else up, **_heads(values, bool(down or up)),
        dropout=values["dropout"], groups=values["norm_num_groups"], norm_eps=values["norm_eps"],
        scale_shift=values["resnet_time_scale_shift"] == "scale_shift", num_classes=values["num_class_embeds"],
        sin_first=not values["flip_sin_to_cos"], freq_shift=values["freq_shift"],
        downsample="conv_asymmetric" if downsample == "conv" and asymmetric else downsample,
        upsample=_resampling(values, "up"), middle_attention=values["add_attention"],
    )  # fmt: skip
    return options.build(found, {})


def to_json(config):
    """The config.json of a network."""
    levels = range(len(config.channel_mult))
    plain = {"conv": "", "conv_asymmetric": "", "block": "Resnet"}
    down = ["AttnDownBlock2D" if config.attention_at(i) else _named(plain[config.downsample], "Down") for i in levels]
    up = ["AttnUpBlock2D" if config.attention_at(i, True) else _named(plain[config.upsample], "Up") for i in levels]
    return dict(
        DEFAULTS, _class_name="UNet2DModel", sample_size=_size(config), in_channels=config.in_channels,
        out_channels=config.out_channels, freq_shift=config.freq_shift, flip_sin_to_cos=not config.sin_first,
        down_block_types=down, up_block_types=up[::-1], block_out_channels=list(config.widths),
        layers_per_block=config.num_res_blocks, downsample_padding=0 if config.downsample == "conv_asymmetric" else 1,
        downsample_type="resnet" if config.downsample == "block" else "conv",
        upsample_type="resnet" if config.upsample == "block" else "conv", dropout=config.dropout,
        attention_head_dim=_head_dim(config), norm_num_groups=config.groups, norm_eps=config.norm_eps,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        attn_norm_num_groups=config.groups if config.scale_shift else None,
        add_attention=config.middle_attention, num_class_embeds=config.num_classes,
    )  # fmt: skip


def refuse(config):
    """Raises where a network is none of diffusers'."""
    levels = options.OneOf(*("conv", "conv_asymmetric", "block"))
    options.fixed(
        config, dict(FIXED, stem_channels=options.OneOf(None, config.channels), downsample=levels), "diffusers"
    )
    if config.widths[0] != config.channels:
        raise ValueError("dialect must be one whose first level may differ from channels, got 'diffusers'")


def _named(resampling, side):
    return f"{'Resnet' if resampling else ''}{side}{'sample' if resampling else ''}Block2D"


def _check(values):
    for name, among in _REQUIRED.items():
        if values[name] not in among:
            raise ValueError(f"{name} must be {' or '.join(map(repr, among))} for a UNet, got {values[name]!r}")
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        strange = [kind for kind in values[name] if kind not in known]
        if strange:
            raise ValueError(f"{name} must be among {', '.join(known)} for a UNet, got {strange[0]!r}")
    width = 4 * values["block_out_channels"][0]
    if values["time_embedding_dim"] not in (None, width):
        raise ValueError(f"time_embedding_dim must be {width} for a UNet, got {values['time_embedding_dim']}")
    groups = values["attn_norm_num_groups"]
    if groups is None and values["resnet_time_scale_shift"] == "scale_shift" and values["add_attention"]:
        raise ValueError("attn_norm_num_groups must be norm_num_groups for a UNet with scale_shift, got None")
    if groups not in (None, values["norm_num_groups"]):
        raise ValueError(f"attn_norm_num_groups must be norm_num_groups for a UNet, got {groups}")


def _size(config):
    return [config.image_size, config.image_width] if config.image_width else config.image_size


def _resampling(values, side):
    """ "conv" or "block": by the types of the levels but the last, which resample, and downsample_type or
    upsample_type."""
    known, kinds = (_DOWN, values["down_block_types"]) if side == "down" else (_UP, values["up_block_types"])
    attending = {"conv": "conv", "resnet": "block"}.get(values[f"{side}sample_type"])
    found = {known[kind] or attending for kind in kinds[:-1]} or {"conv"}
    if len(found) > 1 or None in found:
        text = f"{side}sample_type {values[f'{side}sample_type']!r} with {', '.join(kinds)}"
        raise ValueError(f"{side}_block_types must all resample in one way for a UNet, got {text}")
    return found.pop()


def _heads(values, attends):
    """heads or head_channels: attention_head_dim None is one head."""
    width = values["attention_head_dim"]
    if width is None or not (attends or values["add_attention"]):
        return dict(heads=None, head_channels=None)
    return dict(heads=None, head_channels=width)


def _head_dim(config):
    if config.heads in (None, 1) and not config.head_channels:
        return None
    widths = {config.widths[-1], *(w for i, w in enumerate(config.widths) if config.attention_at(i))}
    sizes = {config.inner_width_of(width) // config.heads_of(width) for width in widths}
    if len(sizes) != 1 or any(config.inner_width_of(width) != width for width in widths):
        raise ValueError(f"dialect must be one with heads by count, got 'diffusers' for heads {config.heads}")
    return sizes.pop()


# What the shapes do not say, and the default of which would be a guess.
_ASKED = (
    "sample_size", "attention_head_dim", "norm_num_groups", "norm_eps", "freq_shift", "flip_sin_to_cos",
    "downsample_padding",
)  # fmt: skip


def _told(given):
    options.require(given, _ASKED)
    return given


def _from_shapes(shapes):
    """The entries of config.json that the weights tell."""
    names = set(shapes)
    levels = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("down_blocks."))
    layers = len([i for i in range(100) if f"down_blocks.0.resnets.{i}.norm1.weight" in names])
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)]
    time = shapes["down_blocks.0.resnets.0.time_emb_proj.weight"][0]
    found = dict(
        in_channels=shapes["conv_in.weight"][1], out_channels=shapes["conv_out.weight"][0], block_out_channels=widths,
        layers_per_block=layers, resnet_time_scale_shift="scale_shift" if time == 2 * widths[0] else "default",
        add_attention="mid_block.attentions.0.to_q.weight" in names,
        num_class_embeds=shapes.get("class_embedding.weight", [None])[0],
    )  # fmt: skip
    for side, prefix in (("down", "Down"), ("up", "Up")):
        block = any(f"{side}_blocks.{i}.{side}samplers.0.norm1.weight" in names for i in range(levels))
        found[f"{side}sample_type"] = "resnet" if block else "conv"
        found[f"{side}_block_types"] = [
            f"Attn{prefix}Block2D"
            if f"{side}_blocks.{i}.attentions.0.to_q.weight" in names
            else _named("Resnet" if block else "", prefix)
            for i in range(levels)
        ]
    return found
