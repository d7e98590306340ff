"""Images in arrays: .npz and .npy."""

import zipfile
import zlib

import numpy as np
import torch

from .labelled import Labelled, checked_labels

_IMAGES, _LABELS = ("images", "x", "arr_0"), ("labels", "y", "arr_1")


def load_npz(path):
    """Labelled images: the `images`, `x` or `arr_0` of an .npz, or its first array; its `labels`, `y` or `arr_1`.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3; or floats in [-1, 1] of these shapes, rounded to bytes.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            names = [name for name in _IMAGES if name in file.files] or file.files
            if not names:
                raise ValueError("no array")
            array = file[names[0]]
            labels = next((file[name] for name in _LABELS if name in file.files and name != names[0]), None)
            classes = file["classes"] if "classes" in file.files else None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data must be an .npz with an array, got {str(path)!r}: {error}") from None
    images = torch.from_numpy(np.ascontiguousarray(_bytes(_channels_first(array))))
    if labels is not None:
        labels = checked_labels(labels, len(images))
    if classes is not None and classes.ndim != 1:
        raise ValueError(f"classes must be a row of names, got shape {list(classes.shape)}")
    return Labelled(images, labels, None if classes is None else tuple(map(str, classes)))


def load_npy(path):
    """Labelled images of a uint8 .npy of a shape that `load_npz` takes, read from the disk as they are needed."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # nothing is ever written, but torch asks that it may
    except (ValueError, EOFError) as error:
        raise ValueError(f"data must be an .npy with an array, got {str(path)!r}: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"data must be an .npy with an array, got {str(path)!r}: an .npz")
    if array.dtype != np.uint8:
        raise ValueError(f"data must be uint8 in an .npy, got {array.dtype}")
    return Labelled(torch.from_numpy(_channels_first(array)))


def _channels_first(array):
    """[N, C, H, W], a view."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise ValueError(f"data must hold [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], got {list(array.shape)}")
    return array


def _bytes(array):
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= -1 and array.max() <= 1):
            raise ValueError(f"data must be uint8 or floats in [-1, 1], got [{array.min()}, {array.max()}]")
        return np.rint((array + 1) * 127.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"data must be uint8 or floats in [-1, 1], got {array.dtype}")
    return array
