"""Data by name: digits, fashion-mnist, folders, arrays, shards, torchvision's data sets."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from .arrays import load_npy, load_npz
from .folder import load_folder
from .labelled import Labelled
from .shards import dataset_of_torchvision, load_shards, shard_paths

NAMES = ("digits", "fashion-mnist")
TORCHVISION = "torchvision:"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load(data, image_size=None, data_dir=None, on_error="raise"):
    """`Labelled`: images uint8 [N, C, H, W], labels int64 [N] or None, and the names of the classes or None.

    Args:
        data: "digits" (1797 handwritten ones of 8x8 inside scikit-learn), "fashion-mnist" (60000 of 28x28),
            "torchvision:CIFAR10" or another of its names, or the path of a folder of images (classes are its folders),
            of an .npz or .npy, of a WebDataset .tar or a .parquet, or of a folder of those.
        image_size: for folders and shards alone: side of the squares that images are resized and cut to.
        data_dir: for fashion-mnist and torchvision alone: where it lies; for fashion-mnist None: where Debian's package
            puts it.
        on_error: for folders alone: "raise" at a broken image, or "skip" it and name it in a warning.

    An .npy of bytes is read from the disk as it is needed; all else lies in memory. Raises ValueError,
    FileNotFoundError or ImportError that says what is missing.
    """
    data = str(data)
    is_dataset = data in NAMES or data.startswith(TORCHVISION)
    shards = [] if is_dataset else shard_paths(data)
    is_folder = not is_dataset and not shards and Path(data).is_dir()
    _check_options(data, image_size, data_dir, on_error, is_dataset, is_folder, bool(shards))
    if data == "digits":
        return Labelled(*digits(), tuple("0123456789"))
    if data == "fashion-mnist":
        return fashion_mnist(data_dir)
    if is_dataset:
        return dataset_of_torchvision(data.removeprefix(TORCHVISION), data_dir)
    if shards:
        return load_shards(shards, image_size)
    if is_folder:
        return load_folder(data, image_size, on_error)
    if data.endswith((".npz", ".npy")):
        return (load_npz if data.endswith(".npz") else load_npy)(data)
    raise ValueError(
        f"data must be {', '.join(NAMES)}, {TORCHVISION}NAME, a folder of images, an .npz, .npy, .tar or .parquet,"
        f" got {data!r}"
    )


def _check_options(data, image_size, data_dir, on_error, is_dataset, is_folder, is_shards):
    if image_size is not None and not (is_folder or is_shards):
        raise ValueError(f"image_size must be None but for folders and shards of images, got {image_size} for {data!r}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if on_error != "raise" and not is_folder:
        raise ValueError(f"on_error must be raise but for a folder of images, got {on_error!r} for {data!r}")
    if data_dir is not None and (not is_dataset or data == "digits"):
        got = f"{str(data_dir)!r} for {data!r}"
        raise ValueError(f"data_dir must be None but for fashion-mnist and torchvision, got {got}")
    if data_dir is None and data.startswith(TORCHVISION):
        raise ValueError(f"data_dir must be given for {data!r}: the root that torchvision was given")


def digits():
    """uint8 [1797, 1, 8, 8], black ground, and their classes int64 [1797].

    Source: E. Alpaydin and C. Kaynak, UCI "Optical recognition of handwritten digits", in scikit-learn.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0..16
    return torch.from_numpy(images)[:, None], torch.from_numpy(found.target.astype(np.int64))


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion_mnist(data_dir=None):
    """Labelled [60000, 1, 28, 28], from data_dir (torchvision's root or the idx files themselves) or Debian's package.

    Where the file of labels is not beside that of images, labels and classes are None.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.
    """
    roots = [DEBIAN_FASHION_MNIST]
    if data_dir is not None:
        roots = [Path(data_dir) / "FashionMNIST" / "raw", Path(data_dir)]
    for root in roots:
        images, labels = _idx_path(root, "train-images-idx3-ubyte"), _idx_path(root, "train-labels-idx1-ubyte")
        if images:
            images = torch.from_numpy(read_idx(images, 3))[:, None]
            return Labelled(images, *(_labels(labels, len(images)) if labels else ()))
    where = data_dir if data_dir is not None else DEBIAN_FASHION_MNIST
    raise FileNotFoundError(
        f"fashion-mnist must be installed, got none in {where}: run `apt-get install dataset-fashion-mnist`,"
        " or name the folder of torchvision's copy with --data-dir"
    )


def _idx_path(root, name):
    return next((path for path in (root / name, root / f"{name}.gz") if path.exists()), None)


def _labels(path, count):
    labels = torch.from_numpy(read_idx(path, 1)).to(torch.int64)
    if len(labels) != count or (count and labels.max() >= len(CLOTHES)):
        raise ValueError(f"labels must be {count} in [0, {len(CLOTHES)}), got {len(labels)} in {str(path)!r}")
    return labels, CLOTHES


def read_idx(path, dimensions):
    """uint8 [N, ...] of an idx file, packed or not: two zero bytes, type 8, the dimensions, their sizes, the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data must be whole, got {str(path)!r}: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        got = f"{len(content)} other bytes in {str(path)!r}"
        raise ValueError(f"data must be an idx file of {dimensions} axes, got {got}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise ValueError(f"data must be {list(shape)} bytes, got {len(content) - start} in {str(path)!r}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
