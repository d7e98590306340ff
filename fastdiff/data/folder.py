"""A folder of images."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from .decode import decode, side
from .labelled import Labelled

ON_ERROR = ("raise", "skip")


def load_folder(folder, image_size=None, on_error="raise"):
    """Labelled images, [N, 3 (1 where all are grey), S, S], of every image under a folder, in the order of their paths.

    Each is made upright, square and S = image_size wide by `decode`; None: the first one's smaller side. Classes are
    the folders of the first level, by name, where every image lies in one and there are two at least.

    on_error: "raise" ValueError at the first broken image, or "skip" it with a warning that names it.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
    folder = Path(folder)
    paths = image_paths(folder)
    image_size = image_size or next((s for s in map(side, paths) if s), None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter's lock
        images = list(pool.map(lambda path: _decoded(path, image_size, on_error), paths))
    kept = [(path, image) for path, image in zip(paths, images, strict=True) if image is not None]
    if not kept:
        raise ValueError(f"data must be a folder with whole images, got {str(folder)!r} without any")
    paths, images = zip(*kept, strict=True)
    return Labelled(stack(images), *_classes(folder, paths))


def image_paths(folder):
    """Every file under the folder whose suffix is one that Pillow reads; sorted."""
    from PIL import Image

    suffixes = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise ValueError(f"data must be a folder with images, got {str(folder)!r} without any")
    return paths


def _decoded(path, image_size, on_error):
    try:
        return decode(path, image_size)
    except ValueError as error:
        message = f"data must hold images, got {str(path)!r}: {error}"
    if on_error == "raise":
        raise ValueError(message)
    warnings.warn(f"skipped: {message}", stacklevel=2)
    return None


def stack(images):
    """uint8 [N, C, S, S] of arrays [S, S] and [S, S, 3]: C is 1 where all are grey."""
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    stacked = torch.from_numpy(np.stack(images))
    return stacked[:, None] if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _classes(folder, paths):
    """(labels, names): those of the folders that the paths lie in."""
    parts = [path.relative_to(folder).parts for path in paths]
    names = sorted({part[0] for part in parts if len(part) > 1})
    if len(names) < 2 or any(len(part) == 1 for part in parts):
        return None, None
    return torch.tensor([names.index(part[0]) for part in parts]), tuple(names)
