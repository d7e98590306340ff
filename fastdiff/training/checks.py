"""What a run is refused for, before it has written anything."""

import zlib

import torch

from . import checkpoint
from .config import FREE

_AT_ONCE = 1 << 24  # bytes of images
_NEW = ("labels",)  # what runs of earlier versions do not tell


def check_shares(config, world):
    """A batch is dealt in equal parts to ranks, and by each to what it accumulates."""
    if config.batch_size % (world * config.accumulate):
        rule = f"a multiple of ranks * accumulate = {world} * {config.accumulate}"
        raise ValueError(f"batch_size must be {rule}, got {config.batch_size}")


def check_graph(config, device, world):
    """A step can be recorded on one GPU."""
    if config.cuda_graph and (device.type != "cuda" or world > 1):
        where = f"{world} ranks" if world > 1 else f"device {device}"
        raise ValueError(f"cuda_graph must be False but for one GPU, got True for {where}")


def check_same(before, settings):
    """Raises one error that lists every setting that is not as in the run to resume."""
    wrong = [
        f"{name} must be as in the run to resume, {before.get(name)!r}, got {value!r}"
        for name, value in settings.items()
        if name not in FREE and before.get(name) != checkpoint.as_json(value) and (name in before or name not in _NEW)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def checked_data(data, model, config):
    """(images, labels or None) of a tensor, or of a `fastdiff.data.Labelled`."""
    images, labels = (data.images, data.labels) if hasattr(data, "images") else (data, None)
    if not isinstance(images, torch.Tensor) or images.dtype is not torch.uint8:
        raise TypeError(f"images must be a uint8 tensor, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images must have shape [N, C, H, W] with N at least 1, got {list(images.shape)}")
    if config.label_dropout is None:
        return images, None
    if labels is None:
        raise ValueError("data must have labels where label_dropout is given, got none")
    if not isinstance(labels, torch.Tensor) or labels.dtype is not torch.int64 or labels.shape != images.shape[:1]:
        got = getattr(labels, "dtype", type(labels).__name__), list(getattr(labels, "shape", ()))
        raise ValueError(f"labels must be int64 of shape [{len(images)}], got {got[0]} of shape {got[1]}")
    classes, least, most = getattr(model, "num_classes", None), int(labels.min()), int(labels.max())
    if not classes or not 0 <= least <= most < classes:
        raise ValueError(f"labels must be in [0, num_classes = {classes}), got {least if least < 0 else most}")
    return images, labels


def told(images, labels):
    """What config.json says of the data."""
    return {name: fingerprint(value) for name, value in (("images", images), ("labels", labels)) if value is not None}


def fingerprint(images):
    """What tells images from others, as JSON can hold it. Those that are read from the disk need not fit in memory."""
    crc = 0
    for part in images.split(max(1, _AT_ONCE // images[0].numel())):
        crc = zlib.crc32(part.cpu().contiguous().numpy(), crc)
    return {"shape": list(images.shape), "crc32": crc}
