"""fastdiff data pack."""

import numpy as np
import pytest
from PIL import Image

from fastdiff.cli import main


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((9, 12), 7, np.uint8)).save(path)
    return tmp_path / "images"


def test_pack(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder), str(tmp_path / "out.npz"), "--image-size", "4"]) == 0
    assert capsys.readouterr().out == f"2 images 4x4x1 of 2 classes: {tmp_path}/out.npz\n"
    assert np.load(tmp_path / "out.npz")["arr_0"].shape == (2, 4, 4, 1)


def test_a_broken_image_stops_it_or_is_skipped(folder, tmp_path, capsys):
    (folder / "a" / "0.png").write_bytes(b"no image")
    arguments = ["data", "pack", str(folder), str(tmp_path / "out.npy")]
    assert main(arguments) == 2 and "0.png" in capsys.readouterr().err and not (tmp_path / "out.npy").exists()
    with pytest.warns(UserWarning, match=r"skipped: .*0\.png"):
        assert main([*arguments, "--on-error", "skip"]) == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 9, 9, 1)


def test_bad_size(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder), str(tmp_path / "out.npz"), "--image-size", "0"]) == 2
    assert "image_size must be positive, got 0" in capsys.readouterr().err
