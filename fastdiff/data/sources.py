"""Data by name: digits, fashion-mnist, a folder of images, an .npz."""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from .images import load_folder

NAMES = ("digits", "fashion-mnist")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load(data, image_size=None, data_dir=None):
    """uint8 [N, C, H, W].

    Args:
        data: "digits" (1797 handwritten ones of 8x8 inside scikit-learn), "fashion-mnist" (60000 of 28x28), the path of
            a folder of images, or of an .npz.
        image_size: for folders alone: side of the squares they are cut and resized to.
        data_dir: for fashion-mnist alone: where it lies; None: where Debian's package puts it.

    Raises ValueError or FileNotFoundError that says what is missing.
    """
    is_folder = data not in NAMES and Path(data).is_dir()
    if image_size is not None and not is_folder:
        raise ValueError(f"image_size must be None but for a folder of images, got {image_size} for {str(data)!r}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if data_dir is not None and data != "fashion-mnist":
        raise ValueError(f"data_dir must be None but for fashion-mnist, got {str(data_dir)!r} for {str(data)!r}")
    if data == "digits":
        return digits()[0]
    if data == "fashion-mnist":
        return fashion_mnist(data_dir)
    if is_folder:
        return load_folder(data, image_size)
    if str(data).endswith(".npz"):
        return load_npz(data)
    raise ValueError(f"data must be {', '.join(NAMES)}, a folder of images or an .npz, got {str(data)!r}")


def digits():
    """uint8 [1797, 1, 8, 8], black ground, and their classes int64 [1797].

    Source: E. Alpaydin and C. Kaynak, UCI "Optical recognition of handwritten digits", in scikit-learn.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0..16
    return torch.from_numpy(images)[:, None], torch.from_numpy(found.target.astype(np.int64))


def fashion_mnist(data_dir=None):
    """uint8 [60000, 1, 28, 28], from data_dir (torchvision's root or the idx files themselves) or Debian's package.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.
    """
    roots = [DEBIAN_FASHION_MNIST]
    if data_dir is not None:
        roots = [Path(data_dir) / "FashionMNIST" / "raw", Path(data_dir)]
    for root in roots:
        for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
            if (root / name).exists():
                return torch.from_numpy(_read_idx(root / name))[:, None]
    where = data_dir if data_dir is not None else DEBIAN_FASHION_MNIST
    raise FileNotFoundError(
        f"fashion-mnist must be installed, got none in {where}: run `apt-get install dataset-fashion-mnist`,"
        " or name the folder of torchvision's copy with --data-dir"
    )


def _read_idx(path):
    """The idx file of images, uint8 [N, H, W]: two zero bytes, type 8, 3 dimensions, their sizes, the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data must be whole, got {str(path)!r}: {error}") from None
    if len(content) < 16 or content[:4] != b"\x00\x00\x08\x03":
        raise ValueError(f"data must be an idx file of images, got {len(content)} other bytes in {str(path)!r}")
    N, H, W = struct.unpack(">III", content[4:16])
    if len(content) != 16 + N * H * W:
        raise ValueError(f"data must be {N} images of {H}x{W}, got {len(content) - 16} bytes in {str(path)!r}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(N, H, W).copy()


def load_npz(path):
    """uint8 [N, C, H, W] from the `images`, `x` or `arr_0` of an .npz, else from its first array.

    uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3; or floats in [-1, 1] of these shapes, rounded to bytes.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            names = [name for name in ("images", "x", "arr_0") if name in file.files] or file.files
            if not names:
                raise ValueError("no array")
            array = file[names[0]]
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data must be an .npz with an array, got {str(path)!r}: {error}") from None
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise ValueError(f"data must hold [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], got {list(array.shape)}")
    return torch.from_numpy(np.ascontiguousarray(_bytes(array)))


def _bytes(array):
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= -1 and array.max() <= 1):
            raise ValueError(f"data must be uint8 or floats in [-1, 1], got [{array.min()}, {array.max()}]")
        return np.rint((array + 1) * 127.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"data must be uint8 or floats in [-1, 1], got {array.dtype}")
    return array
