"""Images in and out: bytes, grids, files, folders."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import images
from fastdiff.data.images import grid, load_folder, save_npz, save_png, to_uint8


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

    monkeypatch.setattr(images.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_png(np.zeros((2, 2), np.uint8), tmp_path / "a.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# ---- Folders ----


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def test_a_folder_of_grey_images(tmp_path):
    for i, name in enumerate(["b/z.PNG", "a.png", "b/c/y.bmp"]):
        write(tmp_path / name, np.full((4, 4), i))
    (tmp_path / "notes.txt").write_text("no image")
    found = load_folder(tmp_path)
    assert found.dtype is torch.uint8 and found.shape == (3, 1, 4, 4) and found.is_contiguous()
    assert found[:, 0, 0, 0].tolist() == [1, 2, 0]


def test_a_mixed_folder_is_coloured(tmp_path):
    write(tmp_path / "a.png", np.full((4, 4), 7))
    write(tmp_path / "b.png", np.stack([np.full((4, 4), c) for c in (1, 2, 3)], 2))
    write(tmp_path / "c.png", np.stack([np.full((4, 4), c) for c in (1, 2, 3, 0)], 2))
    Image.fromarray(np.full((4, 4), 9, np.uint8)).convert("P").save(tmp_path / "d.png")
    assert load_folder(tmp_path)[:, :, 2, 2].tolist() == [[7, 7, 7], [1, 2, 3], [1, 2, 3], [9, 9, 9]]


def test_the_middle_square_is_taken_and_resized(tmp_path):
    wide = np.zeros((4, 10))
    wide[:, 3:7] = np.arange(16).reshape(4, 4) * 16
    write(tmp_path / "a.png", wide)
    write(tmp_path / "b.png", wide.T)
    found = load_folder(tmp_path)[:, 0].numpy()
    assert np.array_equal(found[0], wide[:, 3:7]) and np.array_equal(found[1], wide[:, 3:7].T)
    halved = load_folder(tmp_path, 2)[0, 0].numpy()
    assert np.array_equal(halved, wide[:, 3:7].reshape(2, 2, 2, 2).mean((1, 3)))
    assert load_folder(tmp_path, 9).shape == (2, 1, 9, 9)


def test_the_first_image_sets_the_size(tmp_path):
    write(tmp_path / "a.png", np.zeros((6, 8)))
    write(tmp_path / "b.png", np.zeros((20, 12)))
    assert load_folder(tmp_path).shape == (2, 1, 6, 6)


def test_16_bits_become_8(tmp_path):
    Image.fromarray(np.array([[0, 255], [256, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert load_folder(tmp_path)[0, 0].tolist() == [[0, 0], [1, 255]]


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write(tmp_path / "a.png", [[1, 2], [3, 4]], exif=exif)
    assert load_folder(tmp_path)[0, 0].tolist() == [[4, 3], [2, 1]]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_broken_image_is_named(tmp_path, keep):
    write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32)))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: math.floor(keep * len(content))])
    with pytest.raises(ValueError, match=r"data must hold images, got '.*b\.png'"):
        load_folder(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data must be a folder with images \(\.png, .*\), got '.*' without any"):
        load_folder(tmp_path)
