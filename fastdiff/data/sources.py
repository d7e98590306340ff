"""Data by name: digits, fashion-mnist, a folder of images, an .npz."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from .images import load_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load(data, image_size=None, data_dir=None):
    """uint8 [N, C, H, W].

    Args:
        data: "digits" (1797 handwritten ones of 8x8 inside scikit-learn), "fashion-mnist" (60000 of 28x28), the path of a
            folder of images, or of an .npz.
        image_size: for folders alone: side of the squares they are cut and resized to.
        data_dir: where to look for fashion-mnist first.

    Raises ValueError or FileNotFoundError that says what is missing.
    """
    if image_size is not None and not (Path(data).is_dir() and data not in ("digits", "fashion-mnist")):
        raise ValueError(f"image_size must be None but for a folder of images, got {image_size} for {data!r}")
    if data == "digits":
        return digits()[0]
    if data == "fashion-mnist":
        return fashion_mnist(data_dir)
    if Path(data).is_dir():
        return load_folder(data, image_size)
    if str(data).endswith(".npz"):
        return load_npz(data)
    raise ValueError(f"data must be digits, fashion-mnist, a folder of images or an .npz, got {str(data)!r}")


def digits():
    """uint8 [1797, 1, 8, 8], black ground, and their classes int64 [1797].

    Source: E. Alpaydin and C. Kaynak, UCI "Optical recognition of handwritten digits", in scikit-learn.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0..16
    return torch.from_numpy(images)[:, None], torch.from_numpy(found.target.astype(np.int64))


def fashion_mnist(data_dir=None):
    """uint8 [60000, 1, 28, 28], from data_dir (torchvision's FashionMNIST/raw or the idx files themselves) or Debian's package.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.
    """
    roots = [DEBIAN_FASHION_MNIST]
    if data_dir is not None:
        roots = [Path(data_dir) / "FashionMNIST" / "raw", Path(data_dir)]
    for root in roots:
        for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
            if (root / name).exists():
                return torch.from_numpy(_read_idx(root / name))[:, None]
    where = f"in {data_dir}" if data_dir is not None else f"in {DEBIAN_FASHION_MNIST}"
    raise FileNotFoundError(
        f"fashion-mnist must be installed, got none {where}: run `apt-get install dataset-fashion-mnist`,"
        " or name the folder of torchvision's copy with --data-dir"
    )


def _read_idx(path):
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = file.read()
    if len(content) < 16 or content[:4] != b"\x00\x00\x08\x03":
        raise ValueError(f"{path} must be an idx file of images, got {len(content)} other bytes")
    shape = struct.unpack(">III", content[4:16])
    if len(content) != 16 + shape[0] * shape[1] * shape[2]:
        raise ValueError(f"{path} must hold {shape[0]} images of {shape[1]}x{shape[2]}, got {len(content) - 16} bytes")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape).copy()


def load_npz(path):
    """uint8 [N, C, H, W] from the one array of an .npz, or its `images`, `x` or `arr_0`.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3; or floats in [-1, 1] of these shapes, rounded to bytes.
    """
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in ("images", "x", "arr_0") if name in file.files] or file.files
        if not names:
            raise ValueError(f"data must be an .npz with an array, got {str(path)!r} without any")
        array = file[names[0]]
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"data must hold [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], got {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and -1 <= array.min() and array.max() <= 1):
            raise ValueError("data must be uint8 or floats in [-1, 1], got floats outside")
        array = np.rint((array + 1) * 127.5)
    elif array.dtype != np.uint8:
        raise ValueError(f"data must be uint8 or floats in [-1, 1], got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))
