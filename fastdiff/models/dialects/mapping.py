"""Which weights of a checkpoint become which of a `UNet`: the same numbers under another name, in another shape.

A dialect's table says for each of our modules, or single weights, the names on the other side and a form, the shape
there of a weight that is [D, C] or [C] here. Several names are one matrix in pieces (q, k, v), joined along D.
"""

from typing import NamedTuple

import torch

# Shape of ours to shape of theirs; biases and other vectors have one shape in all forms but "gain".
FORMS = {
    "same": lambda shape: shape,
    "conv1d": lambda shape: (*shape, 1) if len(shape) == 2 else shape,
    "conv2d": lambda shape: (*shape, 1, 1) if len(shape) == 2 else shape,
    "gain": lambda shape: (1, *shape, 1, 1),
    "unshuffle": lambda shape: (shape[0], 4 * shape[1], 1, 1) if len(shape) == 4 else shape,
}


class Weight(NamedTuple):
    """One of our weights and where it lies in the checkpoint."""

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]  # of ours
    their_shape: tuple[int, ...]  # of each of theirs


def nested(ours, theirs, table):
    """A block's table under the names of one such block on either side."""
    return {f"{ours}.{a}": (tuple(f"{theirs}.{b}" for b in bs), form) for a, (bs, form) in table.items()}


def one(theirs, form="same"):
    """An entry of a table: one name."""
    return (theirs,), form


def weights(model, table):
    """Every `Weight` of the model by a dialect's table; its own names with None."""
    found = []
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if table is None:
            theirs, form = (name,), "same"
        elif name in table:
            theirs, form = table[name]
        else:
            theirs, form = table[path]
            theirs = tuple(f"{module}.{leaf}" for module in theirs)
        shape = tuple(tensor.shape)
        piece = (shape[0] // len(theirs), *shape[1:])
        found.append(Weight(name, theirs, shape, FORMS[form](piece)))
    return found


def check(found, shapes, place):
    """One error with every missing, unexpected and mismatched key; `shapes` are the checkpoint's, by name.

    place: what the argument is called, and what it was.
    """
    wanted = {name: weight.their_shape for weight in found for name in weight.theirs}
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    mismatched = [
        f"{name} {list(shapes[name])} for {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if any(lists.values()):
        text = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names)
        raise ValueError(f"{place[0]} must hold the weights of its own config, got {place[1]}: {text}")


def take(weight, tensors, device, dtype=None):
    """Our tensor in memory of its own, from theirs, which leave `tensors`; 4-d ones are channels_last."""
    pieces = [tensors.pop(name) for name in weight.theirs]
    layout = torch.channels_last if len(weight.shape) == 4 else torch.contiguous_format
    dtype = pieces[0].dtype if dtype is None else dtype
    result = torch.empty(weight.shape, dtype=dtype, device=device, memory_format=layout)
    for part, piece in zip(result.chunk(len(pieces)), pieces, strict=True):
        part.copy_(piece.reshape(part.shape))
    return result


def give(weight, tensor):
    """(name, tensor) of theirs for each piece of ours, contiguous."""
    pieces = tensor.detach().chunk(len(weight.theirs))
    for name, piece in zip(weight.theirs, pieces, strict=True):
        yield name, piece.contiguous().reshape(weight.their_shape)
