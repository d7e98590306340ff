"""What a run leaves on disk, each part written whole or not at all.

    config.json                     everything that the run was told
    checkpoints/00000500/           all that resuming from step 500 needs, of which the last few are kept
        state.safetensors           weights model.*, averages ema.<profile>.*, moments optimizer.<i>.<name>, extra.*
        state.json                  the step, counts, the optimizer's options, the checksum of state.safetensors
    model.safetensors               the averaged weights as the network's own `save` writes them, for `fastdiff sample`

Loading runs no code of a file's: safetensors and JSON hold none.
"""

import json
import shutil
import warnings
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import whole, whole_directory
from .sharding import fill, on_cpu

CONFIG, CHECKPOINTS, MODEL = "config.json", "checkpoints", "model.safetensors"
TENSORS, REST = "state.safetensors", "state.json"


def as_json(value):
    """The value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def write_config(directory, config):
    with whole(Path(directory) / CONFIG) as part:
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


def checkpoints(directory):
    """{step: its directory}, the newest first."""
    found = (Path(directory) / CHECKPOINTS).glob("*")
    steps = {int(path.name): path for path in found if path.name.isdigit() and path.is_dir()}
    return dict(sorted(steps.items(), reverse=True))


def save(directory, step, model, ema, optimizer, keep=2, extra=None, *, plain=None, write=True):
    """Writes the checkpoint of a step and the averaged weights; then deletes all but the last `keep` checkpoints.

    Where weights are dealt out among ranks all of them call this together, and one has `write`; `plain` then is the
    network in one piece, which takes the averaged weights. The files are the same as of a rank that holds all. Where
    the disk is full OSError is raised, and the checkpoints before are left as they were.
    """
    tensors, rest = _flattened(step, model, ema, optimizer, extra or {}, write)
    if not write:
        return
    with _disk(), whole_directory(Path(directory) / CHECKPOINTS / f"{step:08d}") as part:
        save_file(tensors, part / TENSORS)
        rest["crc32"] = checksum(part / TENSORS)
        (part / REST).write_text(json.dumps(rest))
    if hasattr(model, "save"):
        with _disk(), whole(Path(directory) / MODEL) as part:
            _save_averaged(part, model, ema, plain, tensors)
    before = [path for saved, path in checkpoints(directory).items() if saved <= step]
    for path in before[keep:]:  # a later one was damaged, or the run would have gone on from there
        shutil.rmtree(path)


def _save_averaged(part, model, ema, plain, tensors):
    if plain is None:
        with ema.applied(model):
            return model.save(part)
    plain.load_state_dict(_under("ema.0.", tensors))
    return plain.save(part)


def _under(prefix, tensors):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class _disk:
    """safetensors' own error for a full disk, as the OSError that it is."""

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if isinstance(error, SafetensorError):
            raise OSError(f"checkpoint could not be written: {error}") from error


def _flattened(step, model, ema, optimizer, extra, keep):
    """(tensors by name, on the CPU, what is none)."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors.update({f"extra.{name}": value for name, value in extra.items()})
    for profile, average in enumerate(ema.averages):
        tensors.update({f"ema.{profile}.{name}": value for name, value in average.items()})
    state = optimizer.state_dict()
    values = {f"optimizer.{i}.{name}": v for i, each in state["state"].items() for name, v in each.items()}
    tensors.update({name: value for name, value in values.items() if isinstance(value, torch.Tensor)})
    numbers = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]  # which may be on the device
    rest = {"step": step, "ema_updates": ema.updates, "optimizer": groups, "optimizer_numbers": numbers}
    return on_cpu(tensors, keep), rest


def restore(directory, model, ema, optimizer, extra=None):
    """Loads the newest whole checkpoint into all three, and into the tensors `extra`, and returns its step.

    A damaged one is passed over with a warning. Raises FileNotFoundError where there is none, and ValueError, with
    nothing changed, where none is whole and this network's.
    """
    damage = []
    for path in checkpoints(directory).values():
        try:
            tensors, rest = _read(path)
            _check(tensors, rest, model, ema, optimizer, extra or {})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            damage.append(f"resume must find a whole checkpoint of this run in {str(path)!r}, got {reason}")
            continue
        for message in damage:
            warnings.warn(f"passed over: {message}", stacklevel=2)
        _load(tensors, rest, model, ema, optimizer, extra or {})
        return rest["step"]
    if damage:
        raise ValueError(damage[0])
    raise FileNotFoundError(f"resume must find a checkpoint, got none in {str(Path(directory) / CHECKPOINTS)!r}")


def _read(path):
    rest = json.loads((path / REST).read_text())
    if checksum(path / TENSORS) != rest["crc32"]:
        raise ValueError(f"a wrong checksum of {TENSORS}")
    return load_file(path / TENSORS), rest


def checksum(path):
    """CRC-32 of a file."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check(tensors, rest, model, ema, optimizer, extra):
    """Raises where a tensor has not the shape of the one that it is for."""
    expected = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    expected.update({f"extra.{name}": value.shape for name, value in extra.items()})
    for profile, average in enumerate(ema.averages):
        expected.update({f"ema.{profile}.{name}": value.shape for name, value in average.items()})
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        if not name.startswith("optimizer."):
            continue
        like = parameters[int(name.split(".")[1])]
        expected[name] = value.shape if value.dim() == 0 else like.shape
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise ValueError("another network's weights")
    if [len(g["params"]) for g in rest["optimizer"]] != [len(g["params"]) for g in optimizer.param_groups]:
        raise ValueError("another optimizer's groups")
    if type(rest["step"]) is not int or type(rest["ema_updates"]) is not int:
        raise ValueError("a step that is no int")
    if not isinstance(rest["optimizer_numbers"], dict):
        raise TypeError("numbers that are no dict")


def _load(tensors, rest, model, ema, optimizer, extra):
    for name, value in model.state_dict().items():
        fill(value, tensors[f"model.{name}"])
    for name, value in extra.items():
        fill(value, tensors[f"extra.{name}"])
    averages = [_under(f"ema.{profile}.", tensors) for profile in range(len(ema.averages))]
    ema.load_state_dict({"averages": averages, "updates": rest["ema_updates"]})
    parameters, state = _parameters(optimizer), {}
    for name, value in {**_under("optimizer.", tensors), **_numbers(rest)}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = _laid_out(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": rest["optimizer"]})


def _numbers(rest):
    return {name.removeprefix("optimizer."): value for name, value in rest["optimizer_numbers"].items()}


def _laid_out(value, parameter):
    """A moment in its parameter's memory layout, as the optimizer made it."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    moment = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    fill(moment, value)
    return moment
