"""Images in shards: WebDataset tar files, Parquet files."""

import io
import os
import tarfile
from pathlib import Path

import torch

from .decode import decode
from .folder import stack
from .labelled import Labelled, checked_labels

SUFFIXES = (".tar", ".parquet")


def shard_paths(path):
    """The shards that a path means, sorted: itself, or those of a folder; none where it holds no shard."""
    path = Path(path)
    if path.is_dir():
        return sorted(shard for shard in path.iterdir() if shard.suffix in SUFFIXES)
    return [path] if path.suffix in SUFFIXES else []


def load_shards(paths, image_size=None):
    """Labelled images of shards, decoded into memory as `fastdiff.data.decode.decode` says.

    A WebDataset sample is an image beside an optional `cls` with its label. A row of a Parquet file is an `image` (or
    `img`), encoded, as bytes or as Hugging Face's {bytes, path}, and an optional `label`. Needs the packages webdataset
    or pyarrow (`pip install "fastdiff[data]"`).
    """
    images, labels = [], []
    for path in paths:
        read = _webdataset if path.suffix == ".tar" else _parquet
        for name, content, label in read(path):
            if not isinstance(content, bytes):
                got = f"{type(content).__name__} as {name!r} in {str(path)!r}"
                raise ValueError(f"data must hold encoded images, got {got}")
            try:
                images.append(decode(io.BytesIO(content), image_size))
            except ValueError as error:
                raise ValueError(f"data must hold images, got {name!r} in {str(path)!r}: {error}") from None
            image_size = image_size or images[0].shape[0]
            labels.append(label)
    if not images:
        raise ValueError(f"data must hold images, got none in {', '.join(map(str, paths))}")
    known = any(label is not None for label in labels)
    if known and None in labels:
        raise ValueError("labels must be given for every image or for none, got some")
    return Labelled(stack(images), checked_labels(labels, len(images)) if known else None)


def _webdataset(path):
    """(name, encoded image, label or None) of each sample."""
    import webdataset

    images = ("png", "jpg", "jpeg", "webp", "bmp", "ppm")
    _check_end(path)
    try:
        for sample in webdataset.WebDataset((str(path),), shardshuffle=False, empty_check=False):
            name, kind = sample["__key__"], next((kind for kind in images if kind in sample), None)
            if kind is None:
                raise ValueError(f"data must hold a {', '.join(images)} in each sample, got {name!r} without")
            yield name, sample[kind], _label(sample["cls"], name) if "cls" in sample else None
    except tarfile.TarError as error:
        raise ValueError(f"data must be a whole .tar, got {str(path)!r}: {error.args[0]}") from None


def _check_end(path):
    """A tar ends in 1024 zero bytes: one cut off at or in the head of a file would be taken for whole."""
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(-min(1024, file.seek(0, os.SEEK_END)), os.SEEK_END)
        if head[257:262] == b"ustar" and file.read().strip(b"\0"):
            raise ValueError(f"data must be a whole .tar, got {str(path)!r} without its end")


def _label(text, name):
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"labels must be ints, got {text!r} of sample {name!r}") from None


def _parquet(path):
    """(name, encoded image, label or None) of each row."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        image = next((name for name in ("image", "img") if name in columns), None)
        if image is None:
            raise ValueError(f"data must have a column image or img, got {', '.join(columns)} in {str(path)!r}")
        label = "label" if "label" in columns else None
        row = 0
        for batch in file.iter_batches(256, columns=[image, label] if label else [image]):
            for values in batch.to_pylist():
                value = values[image]
                yield f"row {row}", value.get("bytes") if isinstance(value, dict) else value, values.get(label)
                row += 1


def dataset_of_torchvision(name, root):
    """Labelled images of the training split of `torchvision.datasets.<name>` below `root`, where it lies already.

    The images keep their size, which must be one for all. Needs torchvision.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
        raise ValueError(f"data must name one of torchvision.datasets, got {name!r}")
    try:
        found = kind(root, train=True)
    except TypeError:  # those with more splits than two
        found = kind(root, split="train")
    except RuntimeError as error:
        raise FileNotFoundError(f"data_dir must hold torchvision's {name}, got {str(root)!r}: {error}") from None
    images, labels = zip(*((image, label) for image, label in found), strict=True)
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"data must hold images of one size, got {len(sizes)} in {name}: use their folder")
    arrays = [_array(image) for image in images]
    classes = getattr(found, "classes", None)
    return Labelled(stack(arrays), torch.tensor(labels, dtype=torch.int64), classes and tuple(map(str, classes)))


def _array(image):
    import numpy as np

    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
