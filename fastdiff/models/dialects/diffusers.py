"""diffusers' `UNet2DModel`: its weights, and its config.json, which says all that the weights do not."""

import re

from .diffusers_config import infer, refuse, to_json
from .mapping import nested, one

__all__ = ["infer", "recognizes", "refuse", "renamed", "table", "to_json"]

_BLOCK = {
    "norm_1": one("norm1"),
    "conv_1": one("conv1"),
    "time": one("time_emb_proj"),
    "norm_2": one("norm2"),
    "conv_2": one("conv2"),
    "skip": one("conv_shortcut"),
}
_ATTENTION = {"norm": one("group_norm"), "qkv": (("to_q", "to_k", "to_v"), "same"), "out": one("to_out.0")}
# Attention's names before version 0.15.
_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
def recognizes(names):
    return "time_embedding.linear_1.weight" in names and any(name.startswith("down_blocks.") for name in names)


def renamed(tensors):
    """The weights by today's names."""
    pattern = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_LEGACY)})\.")
    return {pattern.sub(lambda m: f"{m[1]}.{_LEGACY[m[2]]}.", name): tensor for name, tensor in tensors.items()}


def table(config):
    """{our module or weight: (their names, form)}"""
    names = {"time.linear_1": one("time_embedding.linear_1"), "time.linear_2": one("time_embedding.linear_2")}
    names |= {"time.classes": one("class_embedding"), "conv_in": one("conv_in")}
    names |= {"norm_out": one("conv_norm_out"), "conv_out": one("conv_out")}
    for ours, theirs in (("block_1", "resnets.0"), ("block_2", "resnets.1")):
        names |= nested(f"middle.{ours}", f"mid_block.{theirs}", _BLOCK)
    names |= nested("middle.attention", "mid_block.attentions.0", _ATTENTION)
    for side, count in (("down", config.num_res_blocks), ("up", config.num_res_blocks + 1)):
        for level in range(len(config.channel_mult)):
            theirs, resampler = f"{side}_blocks.{level}", f"{side}_blocks.{level}.{side}samplers.0"
            for i in range(count):
                names |= nested(f"{side}.{level}.blocks.{i}", f"{theirs}.resnets.{i}", _BLOCK)
                names |= nested(f"{side}.{level}.attentions.{i}", f"{theirs}.attentions.{i}", _ATTENTION)
            names |= {f"{side}.{level}.{side}sample": one(f"{resampler}.conv")}
            names |= nested(f"{side}.{level}.{side}sample", resampler, _BLOCK)
    return names
