"""What a run leaves on disk, each file written whole or not at all.

    config.json         everything that the run was told
    checkpoint.pt       all that resuming needs: weights, their average, the optimizer, the step
    model.safetensors   the averaged weights as the network's own `save` writes them: what `fastdiff sample` reads
"""

import contextlib
import json
import os
import zipfile
from pathlib import Path

import torch

CONFIG, CHECKPOINT, MODEL = "config.json", "checkpoint.pt", "model.safetensors"


@contextlib.contextmanager
def whole(path):
    """A path beside this one to write to; what was written takes this one's place once it is whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def as_json(value):
    """The value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def write_config(directory, config):
    with whole(directory / CONFIG) as part:
        part.write_text(json.dumps(config, indent=2) + "\n")


def read_config(directory, name="run"):
    """The run's config. Raises FileNotFoundError or ValueError, which call the directory `name`, where it is no run."""
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{name} must be a directory of fastdiff train, got {str(directory)!r} without {CONFIG}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name} must hold a {CONFIG} of JSON, got {str(path)!r}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{name} must hold a {CONFIG} of fastdiff train, got {type(config).__name__} in {str(path)!r}")
    return config


def save(directory, step, model, ema, optimizer):
    state = {"step": step, "model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    with whole(directory / CHECKPOINT) as part:
        torch.save(state, part)
    if hasattr(model, "save"):
        with whole(directory / MODEL) as part, ema.applied(model):
            model.save(part)


def restore(directory, model, ema, optimizer):
    """Loads the checkpoint into all three and returns its step.

    Raises FileNotFoundError where there is none, and ValueError, with nothing changed, where it is damaged or another
    network's.
    """
    path = Path(directory) / CHECKPOINT
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"a wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damage makes readers fail in any way
        raise _refusal(path, str(error).partition("\n")[0] or type(error).__name__) from error
    try:
        fits = _fits(state, model, ema, optimizer)
        step = int(state["step"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _refusal(path, repr(error)) from error
    if not fits:
        raise _refusal(path, "another network's weights")
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def _fits(state, model, ema, optimizer):
    """Whether every tensor has the shape of the one that it is for."""
    saved, parameters = state["optimizer"], [p for group in optimizer.param_groups for p in group["params"]]
    moments = [
        value.shape == parameters[index].shape or value.dim() == 0
        for index, values in saved["state"].items()
        for value in values.values()
    ]
    return (
        _shapes(state["model"]) == _shapes(model.state_dict())
        and _shapes(state["ema"]["average"]) == _shapes(ema.average)
        and isinstance(state["ema"]["updates"], int)
        and _sizes(saved["param_groups"]) == _sizes(optimizer.param_groups)
        and all(moments)
    )


def _shapes(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def _sizes(groups):
    return [len(group["params"]) for group in groups]


def _refusal(path, reason):
    return ValueError(f"resume must find a whole checkpoint of this run in {str(path)!r}, got {reason}")
