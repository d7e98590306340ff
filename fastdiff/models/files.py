"""A U-Net as one safetensors file: weights by their state_dict keys, the config as JSON in the metadata."""

import json

import safetensors
from safetensors.torch import save_file

from .config import UNetConfig

_FORMAT = "fastdiff.UNet"


def save(model, path):
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": _FORMAT, "config": json.dumps(model.config.to_dict())})


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
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"path must be a file that UNet.save wrote, got {path} without its config")
    model = UNet(UNetConfig(**json.loads(metadata["config"])))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"path must hold the weights of its own config, got {path}: {error}") from error
    return model.to(device).eval()
