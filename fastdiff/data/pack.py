"""A folder of images into one file."""

from pathlib import Path

import numpy as np

from ..files import whole
from .folder import load_folder


def pack(folder, out, image_size=None, on_error="raise"):
    """Writes a folder's images, made square by `decode`, to one file; returns `Labelled`.

    out: .npz with arr_0 uint8 [N, S, S, C], and where the folder has classes labels int64 [N] and their names; or .npy
    with the images alone, which training reads from the disk as it needs them. Written whole or not at all.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".npy"):
        raise ValueError(f"out must end in .npz or .npy, got {str(out)!r}")
    if out.is_dir():
        raise ValueError(f"out must be a file, got the folder {str(out)!r}")
    found = load_folder(folder, image_size, on_error)
    images = found.images.permute(0, 2, 3, 1).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as part, open(part, "wb") as file:
        if out.suffix == ".npy":
            np.save(file, images)
        elif found.labels is None:
            np.savez(file, images)
        else:
            np.savez(file, images, labels=found.labels.numpy(), classes=np.array(found.classes))
    return found
