"""A U-Net in a file: ours is safetensors with the config as JSON in the metadata; other people's are in `dialects`."""

import json
import os
from pathlib import Path

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from ..files import whole
from . import checkpoints, dialects
from .config import UNetConfig
from .dialects import mapping

DIALECTS = ("fastdiff", *dialects.DIALECTS)


def load_unet(source, dialect="auto", config=None, *, ema=False, device=None, dtype=None):
    """The `UNet` of a checkpoint, in evaluation mode, whoever wrote it.

    Args:
        source: a file of `UNet.save`, of safetensors or of torch.save (weights alone: no code is unpickled); a folder
            of diffusers; or a state dict. What trainers wrap around one (`model`, `ema`, `state_dict`, `module.`) is
            removed.
        dialect: "fastdiff", "openai" (improved-diffusion), "guided" (guided-diffusion), "diffusers", "ddpm" (pesser's
            port), "lucidrains" (from version 0.28 on); "auto": by the names of the weights, which for some of OpenAI's
            say no more than "openai".
        config: a `UNetConfig`; or a dict of what the weights do not tell, by the dialect's own names, such as
            image_size, num_heads and use_new_attention_order; None: what comes with the source.
        ema: the averaged weights, where the checkpoint has them.
        device, dtype: of the weights; None: the CPU, and as stored.

    The weights are in memory once: each goes from the file to its place. Raises OSError where there is no such file,
    ValueError where it is something else or damaged, where the config lacks an option (all are named), and where
    weights are missing, unexpected or of another shape (all are named).
    """
    if dialect not in ("auto", *DIALECTS):
        raise ValueError(f"dialect must be auto or one of {', '.join(DIALECTS)}, got {dialect!r}")
    if not isinstance(source, (dict, str, os.PathLike)):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating torch.dtype or None, got {dtype!r}")
    checkpoint = checkpoints.read(source, ema)
    tensors = checkpoint.tensors
    if dialect == "auto":
        dialect = dialects.detect(tensors) or "fastdiff"
    if dialect == "diffusers":
        tensors = dialects.DIALECTS[dialect].renamed(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    place = ("source", "a state dict") if isinstance(source, dict) else ("path", source)
    config = _config(dialect, shapes, config, checkpoint, place)
    model = _empty(config)
    found = mapping.weights(model, None if dialect == "fastdiff" else dialects.DIALECTS[dialect].table(config))
    mapping.check(found, shapes, place)
    del checkpoint  # which would keep what is taken
    tensors = dict(tensors)
    state = {weight.ours: mapping.take(weight, tensors, device, dtype) for weight in found}
    model.load_state_dict(state, assign=True)
    return model.eval()


def save(model, path):
    """The model in our own format."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    _write(path, safetensors.torch.save(tensors, _metadata(model)))


def save_unet(model, path, dialect="fastdiff"):
    """Writes a `UNet`'s weights by the names and shapes of a dialect: bitwise those that `load_unet` found there.

    path ends in .safetensors, or else becomes torch.save's state dict; for diffusers it is a folder, of config.json and
    diffusion_pytorch_model.safetensors. A safetensors file also holds our config, which `load_unet` reads, whatever the
    dialect. Raises ValueError, naming the options, where the dialect has no such network.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}")
    if not hasattr(model, "config") or not isinstance(model.config, UNetConfig):
        raise TypeError(f"model must be a UNet, got {type(model).__name__}")
    if dialect == "fastdiff":
        return save(model, path)
    peer, path = dialects.DIALECTS[dialect], Path(path)
    peer.refuse(model.config)
    weights, state = mapping.weights(model, peer.table(model.config)), model.state_dict()
    tensors = dict(pair for weight in weights for pair in mapping.give(weight, state[weight.ours]))
    if dialect == "diffusers":
        path.mkdir(parents=True, exist_ok=True)
        _write(path / "config.json", json.dumps(peer.to_json(model.config), indent=2).encode())
        path = path / "diffusion_pytorch_model.safetensors"
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"} if dialect == "diffusers" else _metadata(model)
        return _write(path, safetensors.torch.save(tensors, metadata))
    _write(path, tensors)


def _metadata(model):
    return {checkpoints.CONFIG: json.dumps(model.config.to_dict())}


def _config(dialect, shapes, given, checkpoint, place):
    """The network's config: the one given, the one in the file, or the dialect's, of the shapes and what is given."""
    if isinstance(given, UNetConfig):
        return given
    if given is not None and not isinstance(given, dict):
        raise TypeError(f"config must be a UNetConfig or a dict, got {type(given).__name__}")
    if dialect != "fastdiff" and (checkpoint.ours is None or given is not None):
        try:
            told = {"version": checkpoint.version} if dialect == "lucidrains" and checkpoint.version else {}
            return dialects.DIALECTS[dialect].infer(shapes, {**told, **(checkpoint.diffusers or {}), **(given or {})})
        except KeyError as error:
            raise _lacking(place, shapes, dialect, error) from error
    if checkpoint.ours is None and given is None:
        known = ", ".join(DIALECTS[1:])
        text = f"{place[0]} must be a file that UNet.save wrote, got {place[1]} without its config"
        raise ValueError(f"{text}, and by its names none of {known}")
    try:
        return UNetConfig(**{**json.loads(checkpoint.ours or "{}"), **(given or {})})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place[0]} must hold a config of this version's UNet, got {place[1]}: {error}") from error


def _lacking(place, shapes, dialect, error):
    """The error for weights too few to tell what network they are of."""
    text = f"no {error} among its {len(shapes)} weights"
    return ValueError(f"{place[0]} must be a checkpoint of {dialect}, got {place[1]}: {text}")


def _empty(config):
    """The network without memory for its weights."""
    from .unet import UNet

    with torch.device("meta"), _Undrawn():
        return UNet(config)


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: drawing none, on the meta device, takes seconds of imports."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _write(path, content):
    """Bytes, or a dict for torch.save: whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content) if isinstance(content, bytes) else torch.save(content, part)
