"""A U-Net as one safetensors file: weights by their state_dict keys, the config as JSON in the metadata."""

import json
import os
from pathlib import Path

import safetensors
import safetensors.torch

from .config import UNetConfig

_CONFIG = "fastdiff.UNet"  # the one key of the metadata: of several, the order in the file is random


def save(model, path):
    path = Path(path)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {_CONFIG: json.dumps(model.config.to_dict())}
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(safetensors.torch.save(tensors, metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_unet(path, device=None):
    """The U-Net that `UNet.save` wrote to path, in evaluation mode, on `device` (None: the CPU).

    No code is unpickled. Raises OSError where there is no such file, ValueError where it is something else or damaged.
    """
    from .unet import UNet

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"path must be a whole safetensors file, got {path}: {error}") from error
    if _CONFIG not in metadata:
        raise ValueError(f"path must be a file that UNet.save wrote, got {path} without its config")
    try:
        model = UNet(UNetConfig(**json.loads(metadata[_CONFIG])))
    except (TypeError, ValueError) as error:
        raise ValueError(f"path must hold a config of this version's UNet, got {path}: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"path must hold the weights of its own config, got {path}: {error}") from error
    return model.to(device).eval()
