"""What a run leaves on disk, each file written whole or not at all.

    config.json         everything that the run was told
    checkpoint.pt       all that resuming needs: weights, their average, the optimizer, the step
    model.safetensors   the averaged weights as the network's own `save` writes them: what `fastdiff sample` reads
"""

import json
import os
import pickle
from pathlib import Path

import torch

CONFIG, CHECKPOINT, MODEL = "config.json", "checkpoint.pt", "model.safetensors"


def as_json(value):
    """The value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def write_config(directory, config):
    temporary = directory / f"{CONFIG}.part"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, directory / CONFIG)


def read_config(directory):
    """The run's config. Raises FileNotFoundError or ValueError where the directory is not a run."""
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"run must be a directory of fastdiff train, got {str(directory)!r} without {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a config of fastdiff train, got {type(config).__name__}")
    return config


def save(directory, step, model, ema, optimizer):
    state = {"step": step, "model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    temporary = directory / f"{CHECKPOINT}.part"
    torch.save(state, temporary)
    os.replace(temporary, directory / CHECKPOINT)
    if hasattr(model, "save"):
        temporary = directory / f"{MODEL}.part"
        with ema.applied(model):
            model.save(temporary)
        os.replace(temporary, directory / MODEL)


def restore(directory, model, ema, optimizer):
    """Loads the checkpoint into all three and returns its step; nothing is changed where the file is damaged."""
    path = Path(directory) / CHECKPOINT
    if not path.exists():
        raise FileNotFoundError(f"resume needs a checkpoint, got {str(directory)!r} without {CHECKPOINT}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, weights = int(state["step"]), state["model"]
    except (RuntimeError, EOFError, KeyError, TypeError, OSError, pickle.UnpicklingError) as error:
        _refuse(path, str(error).splitlines()[0] if str(error) else type(error).__name__)
    if model.state_dict().keys() != weights.keys():
        _refuse(path, "another network's weights")
    model.load_state_dict(weights)
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def _refuse(path, reason):
    raise ValueError(f"{path} must be a whole checkpoint of this run, got: {reason}")
