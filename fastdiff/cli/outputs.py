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
