"""A folder packed into one file."""

import numpy as np
import pytest
from PIL import Image

from fastdiff import files
from fastdiff.data import load
from fastdiff.data.pack import pack as pack_folder


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["cat/a.png", "cat/b.jpg", "dog/c.bmp"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 8 + i, 3), 40 * i, np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_packed_folder_is_the_folder(folder, tmp_path, suffix):
    """In OpenAI's layout, and as training reads it again."""
    out = tmp_path / f"new/packed{suffix}"
    pack_folder(folder, out, image_size=4)
    array = np.load(out) if suffix == ".npy" else np.load(out)["arr_0"]
    assert array.shape == (3, 4, 4, 3) and array.dtype == np.uint8
    ours, theirs = load(out), load(folder, image_size=4)
    assert np.array_equal(ours.images.numpy(), theirs.images.numpy())
    if suffix == ".npz":
        assert ours.labels.tolist() == theirs.labels.tolist() == [0, 0, 1] and ours.classes == ("cat", "dog")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_write_that_fails_leaves_the_old_file(folder, tmp_path, monkeypatch):
    (tmp_path / "a.npz").write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pack_folder(folder, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_text() == "old" and not list(tmp_path.glob("*.part"))


def test_bad_out(folder, tmp_path):
    with pytest.raises(ValueError, match=r"out must end in \.npz or \.npy, got 'a\.zip'"):
        pack_folder(folder, "a.zip")
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(ValueError, match="out must be a file, got the folder"):
        pack_folder(folder, tmp_path / "a.npz")
