"""Where samples go: a grid, an array, a folder of images, put together from the micro-batches of a run."""

import io
import zipfile

import numpy as np
import torch

from ..data.images import grid, save_png
from ..files import whole


def check(out, resume=False):
    """Raises, before hours of sampling, where the samples could not be written."""
    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"out must end in .png or .npz, or be a folder, got {str(out)!r}")
    if out.is_dir() if out.suffix else out.is_file():
        raise ValueError(f"out must be a {'file' if out.suffix else 'folder'}, got {str(out)!r}")
    if not out.suffix and not resume and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"out must be a new or empty folder, got {str(out)!r} (resume goes on)")
    out.parent.mkdir(parents=True, exist_ok=True)


def complete(out, n):
    """Whether a finished run has left n samples there; a grid does not tell how many. ValueError where others are."""
    if out.suffix == ".png" or not out.exists() or not (out.suffix or any(out.iterdir())):
        return out.is_file()
    found = _length(out) if out.suffix else sum((out / f"{i:06d}.png").exists() for i in range(n))
    if found != n or (not out.suffix and len(list(out.iterdir())) != n):
        raise ValueError(f"out must be new, or hold the {n} samples of a finished run, got others in {str(out)!r}")
    return True


def _length(path):
    """How many images an .npz of ours holds, from its header; -1 where it is another file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            np.lib.format.read_magic(member)
            return np.lib.format.read_array_header_1_0(member)[0][0]
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError):
        return -1


def write(parts, out, labels=None):
    """The parts, uint8 [.., H, W, C], as the one file that `out` names."""
    if out.suffix == ".npz":
        with whole(out) as part, open(part, "wb") as file:
            _npz(file, parts, labels)
    else:
        images = np.concatenate([parts.load(index) for index in range(len(parts))])
        save_png(_sheet(images), out)


def write_folder(parts, out, rank=0, world=1):
    """This process' share of the parts as files 000000.png and so on."""
    out.mkdir(exist_ok=True)
    for index in range(rank, len(parts), world):
        for i, image in zip(parts.ids(index), parts.load(index), strict=True):
            save_png(_sheet(image[None], gap=0), out / f"{i:06d}.png", least=1)


def _sheet(images, gap=1):
    return grid(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, gap)


def _npz(file, parts, labels):
    """OpenAI's layout, a part at a time: arr_0 uint8 [n, H, W, C] and, with labels, arr_1 int64 [n]."""
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            shape = (parts.n, *parts.load(0).shape[1:])
            _header(member, shape, np.uint8)
            for index in range(len(parts)):
                member.write(np.ascontiguousarray(parts.load(index)).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                _header(member, labels.shape, labels.dtype)
                member.write(labels.tobytes())


def _header(member, shape, dtype):
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    member.write(header.getvalue())
