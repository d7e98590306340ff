"""Images out: bytes, grids, files."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import files
from fastdiff.data.images import grid, save_npz, save_png, to_uint8


def test_bytes_are_those_that_the_network_was_trained_on():
    """Every byte u comes back from u / 127.5 - 1; what lies outside is limited."""
    u = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(u / 127.5 - 1), u)
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


@pytest.mark.parametrize("N, rows, columns", [(1, 1, 1), (2, 1, 2), (5, 2, 3), (6, 2, 3), (64, 8, 8), (7, 3, 3)])
@pytest.mark.parametrize("C", [1, 3])
def test_grid(N, rows, columns, C):
    bytes_ = torch.randint(1, 256, (N, C, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = grid(bytes_ / 127.5 - 1)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (rows * 5 + 1, columns * 6 + 1, *([3] if C == 3 else []))
    for i, image in enumerate(bytes_.permute(0, 2, 3, 1).numpy()):
        y, x = 1 + i // columns * 5, 1 + i % columns * 6
        assert np.array_equal(sheet[y : y + 4, x : x + 5].reshape(image.shape), image)
    assert (sheet == 0).sum() == sheet.size - bytes_.numel()


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (1, 4, 4)])
def test_bad_grid(shape):
    with pytest.raises(ValueError, match=r"samples must have shape \[N, 1 or 3, H, W\], got \["):
        grid(torch.zeros(shape))


@pytest.mark.parametrize("least, factor", [(1, 1), (9, 1), (19, 1), (29, 2), (512, 51)])
def test_png(tmp_path, least, factor):
    image = np.random.default_rng(0).integers(0, 256, (10, 7, 3), np.uint8)
    save_png(image, tmp_path / "a.png", least)
    found = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(found, image.repeat(factor, 0).repeat(factor, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_npz(tmp_path):
    u = torch.randint(0, 256, (3, 1, 4, 5), dtype=torch.uint8)
    save_npz(u / 127.5 - 1, tmp_path / "a.npz")
    found = np.load(tmp_path / "a.npz")
    assert found.files == ["arr_0"] and found["arr_0"].dtype == np.uint8
    assert np.array_equal(found["arr_0"], u.permute(0, 2, 3, 1).numpy())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_png(np.zeros((2, 2), np.uint8), tmp_path / "a.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
