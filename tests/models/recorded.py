"""Networks recorded by running improved-diffusion (1bc7bbb), guided-diffusion (22e0df8), diffusers 0.42.1 and
denoising-diffusion-pytorch 2.3.4: weights in float16, inputs, outputs and gradients."""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import torch

from fastdiff import load_unet
from fastdiff.models import dialects
from fastdiff.models.dialects import mapping

NAMES = (
    "improved_a", "improved_b", "improved_c_class", "guided_d_new", "guided_d_legacy", "classifier_attention",
    "superres_improved", "ddpm_like", "default_class", "lucidrains_unet",
)  # fmt: skip
DIALECTS = dict(
    improved_a="openai", improved_b="openai", improved_c_class="openai", guided_d_new="guided",
    guided_d_legacy="guided", classifier_attention="guided", superres_improved="openai", ddpm_like="diffusers",
    default_class="diffusers", lucidrains_unet="lucidrains",
)  # fmt: skip


@functools.cache
def fixture(name):
    """Arrays of tests/data/unets/<name>.npz as tensors, the JSON texts parsed, the weights under "sd" in float32."""
    with np.load(Path(__file__).parents[1] / "data" / "unets" / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file}
    texts = {key: json.loads(str(array)) for key, array in arrays.items() if array.dtype.kind == "U"}
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items() if key not in texts}
    weights = {key[3:]: value.float() for key, value in tensors.items() if key.startswith("sd.")}
    return {key: value for key, value in tensors.items() if not key.startswith("sd.")} | texts | {"sd": weights}


def options(name):
    """What the weights do not tell, as the user of `load_unet` would say it."""
    kwargs = dict(fixture(name)["config"]["kwargs"])
    if DIALECTS[name] == "lucidrains":
        return dict(image_size=16)
    if DIALECTS[name] != "diffusers":
        kwargs["image_size"] = 16
    if DIALECTS[name] == "guided":
        kwargs.setdefault("use_new_attention_order", False)
    return kwargs


def network(name):
    """A copy of its own: tests change its weights and its dtype."""
    return copy.deepcopy(_network(name))


@functools.cache
def _network(name):
    return load_unet(fixture(name)["sd"], config=options(name))


def inputs(name, case, dtype=torch.float32):
    """(x, t, the other inputs by name) of one call."""
    data = fixture(name)
    y = data.get("y", data.get("class_labels"))
    extra = {} if y is None or "classifier" in name else {"y": y}  # what a classifier tells is no input of it
    if "low_res" in data:
        extra["low_res"] = data["low_res"].to(dtype)
    return data["x"].to(dtype), data[f"{case}.timesteps"], extra


def error(value, reference):
    """Largest error divided by the deviation of the reference."""
    return ((value.double() - reference.double()).abs().max() / reference.double().std()).item()


def largest(value, reference):
    """Largest error divided by the largest number of the reference."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def largest_of_samples(value, reference):
    """The same of each sample alone, the worst."""
    return max(largest(*pair) for pair in zip(value, reference, strict=True))


def gradients(model, dialect):
    """By the names of the dialect, like its weights."""
    weights = mapping.weights(model, dialects.DIALECTS[dialect].table(model.config))
    parameters = dict(model.named_parameters())
    return dict(pair for weight in weights for pair in mapping.give(weight, parameters[weight.ours].grad))
