"""Weights out of files: safetensors, torch.save's, folders of diffusers, and what trainers wrap around a state dict.

Tensors of files are views of the mapped file, so that nothing is in memory before it is taken. No code is unpickled.
"""

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch

CONFIG = "fastdiff.UNet"  # the one key of our metadata: of several, the order in the file is random
_STEM = "diffusion_pytorch_model"  # of diffusers' files
_MODEL_KEYS, _EMA_KEYS = ("state_dict", "model", "unet", "model_state_dict"), ("ema", "model_ema", "ema_state_dict")
# What wraps the network inside a state dict; ema_pytorch keeps both under one.
_PREFIXES = ("module.", "_orig_mod.", "model.", "online_model.", "unet.")
_EMA_PREFIXES = ("ema_model.",)


class Checkpoint(NamedTuple):
    """Tensors by the network's own names, and the config that came with them."""

    tensors: dict
    ours: str | None = None  # JSON of a `UNetConfig`
    diffusers: dict | None = None  # config.json
    version: str | None = None  # of lucidrains' package, whose Trainer wrote the file


def read(source, ema=False):
    """The `Checkpoint` of a path or state dict."""
    if isinstance(source, dict):
        return _of_content(source, ema)
    path = Path(source)
    if path.is_dir():
        return _folder(path, ema)
    if _is_safetensors(path):
        tensors, metadata = _safetensors(path)
        return Checkpoint(state_dict(tensors, ema), metadata.get(CONFIG))
    return _of_content(_torch(path), ema)


def _of_content(content, ema):
    version = content.get("version") if isinstance(content, dict) else None
    return Checkpoint(state_dict(content, ema), version=version if isinstance(version, str) else None)


def state_dict(content, ema=False):
    """The tensors of a checkpoint by the network's own names: out of the trainer's dict, without the wrapper's prefix.

    ema asks for the averaged weights; it is an error where there are none.
    """
    if isinstance(content, list | tuple):  # ddim's: [network, optimizer, epoch, step, averages]
        if ema and len(content) < 5:
            raise ValueError(f"ema must be False for a checkpoint without averages, got a list of {len(content)}")
        content = content[-1 if ema else 0]
        ema = False
    if not isinstance(content, dict):
        raise ValueError(f"path must hold a state dict, got {type(content).__name__}")
    wrapped = [name for name in _EMA_KEYS if isinstance(content.get(name), dict)]
    if ema and wrapped:
        content, ema = content[wrapped[0]], any(name.startswith(_EMA_PREFIXES) for name in content[wrapped[0]])
    else:
        while inner := [content[name] for name in _MODEL_KEYS if isinstance(content.get(name), dict)]:
            content = inner[0]
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return _unwrapped(tensors, ema)


def _unwrapped(tensors, ema):
    """Without the prefixes that wrappers put before every name; a wrapper's own buffers are left behind."""
    from . import dialects

    if ema:
        averaged = _below(tensors, _EMA_PREFIXES)
        if not averaged:
            raise ValueError("ema must be False for a checkpoint without averaged weights, got True")
        tensors = averaged
    while not dialects.detect(tensors) and not _is_ours(tensors):
        inner = _below(tensors, _PREFIXES)
        if not inner:
            break
        tensors = inner
    return tensors


def _is_ours(tensors):
    return "time.linear_1.weight" in tensors


def _below(tensors, prefixes):
    """What lies under the first of the prefixes that there is."""
    for prefix in prefixes:
        inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if inner:
            return inner
    return {}


def _is_safetensors(path):
    """By content: eight bytes of a length and a brace. A file too short for anything is none of torch's either."""
    with path.open("rb") as file:
        start = file.read(10)
    return len(start) < 10 or start[8:9] == b"{" or path.suffix == ".safetensors"


def _safetensors(path):
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"path must be a whole safetensors file, got {path}: {error}") from error


def _torch(path):
    """torch.save's content; mapped, unless it is of the format before zip files."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # to the unpickler, any bytes are a program
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"path must be safetensors, or torch.save's weights alone, got {path}: {reason}") from error


def _folder(path, ema):
    """A model of diffusers, or a pipeline with one in unet/."""
    folder = next((f for f in (path, path / "unet") if (f / "config.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"path must be a folder with config.json, or unet/config.json, got {path}")
    config = json.loads((folder / "config.json").read_text())
    for suffix in ("safetensors", "bin"):
        index = folder / f"{_STEM}.{suffix}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            parts = [read(folder / shard, ema).tensors for shard in shards]
            return Checkpoint({name: tensor for part in parts for name, tensor in part.items()}, diffusers=config)
        for file in (folder / f"{_STEM}.{suffix}", folder / f"{_STEM}.fp16.{suffix}"):
            if file.is_file():
                return Checkpoint(read(file, ema).tensors, diffusers=config)
    raise FileNotFoundError(f"path must be a folder with {_STEM}.safetensors or .bin, got {folder}")
