"""Folders of images: order, shape, classes, what is broken."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import decode
from fastdiff.data.folder import load_folder


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def test_a_folder_of_grey_images(tmp_path):
    for i, name in enumerate(["b/z.PNG", "a.png", "b/c/y.bmp"]):
        write(tmp_path / name, np.full((4, 4), i))
    (tmp_path / "notes.txt").write_text("no image")
    found = load_folder(tmp_path).images
    assert found.dtype is torch.uint8 and found.shape == (3, 1, 4, 4) and found.is_contiguous()
    assert found[:, 0, 0, 0].tolist() == [1, 2, 0]


def test_a_mixed_folder_is_coloured(tmp_path):
    write(tmp_path / "a.png", np.full((4, 4), 7))
    write(tmp_path / "b.png", np.stack([np.full((4, 4), c) for c in (1, 2, 3)], 2))
    write(tmp_path / "c.png", np.stack([np.full((4, 4), c) for c in (1, 2, 3, 0)], 2))
    Image.fromarray(np.full((4, 4), 9, np.uint8)).convert("P").save(tmp_path / "d.png")
    assert load_folder(tmp_path).images[:, :, 2, 2].tolist() == [[7, 7, 7], [1, 2, 3], [1, 2, 3], [9, 9, 9]]


def test_the_middle_square_is_taken_and_resized(tmp_path):
    """Halved by box filters first, then cut: the middle of a 4x12 image is four whole boxes of 2x2."""
    wide = np.zeros((4, 12))
    wide[:, 4:8] = np.arange(16).reshape(4, 4) * 16
    write(tmp_path / "a.png", wide)
    write(tmp_path / "b.png", wide.T)
    found = load_folder(tmp_path).images[:, 0].numpy()
    assert np.array_equal(found[0], wide[:, 4:8]) and np.array_equal(found[1], wide[:, 4:8].T)
    halved = load_folder(tmp_path, 2).images[0, 0].numpy()
    assert np.array_equal(halved, wide[:, 4:8].reshape(2, 2, 2, 2).mean((1, 3)))
    assert load_folder(tmp_path, 9).images.shape == (2, 1, 9, 9)


def test_the_first_image_sets_the_size(tmp_path):
    write(tmp_path / "a.png", np.zeros((6, 8)))
    write(tmp_path / "b.png", np.zeros((20, 12)))
    assert load_folder(tmp_path).images.shape == (2, 1, 6, 6)


def test_16_bits_become_8(tmp_path):
    Image.fromarray(np.array([[0, 255], [256, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert load_folder(tmp_path).images[0, 0].tolist() == [[0, 0], [1, 255]]


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write(tmp_path / "a.png", [[1, 2], [3, 4]], exif=exif)
    assert load_folder(tmp_path).images[0, 0].tolist() == [[4, 3], [2, 1]]


@pytest.mark.parametrize("array, message", [
    (np.full((2, 2), 0.5, np.float32), "must be of 8 or 16 bits, got floats"),
    (np.full((2, 2), 2**16, np.int32), "must be of 8 or 16 bits, got values from 65536 to 65536"),
])  # fmt: skip
def test_pixels_of_an_unknown_scale_are_refused(tmp_path, array, message):
    """They became black, or lost their upper bits."""
    Image.fromarray(array).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_scans_of_16_bits_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.array([[1, 2], [3, 4]], np.uint16) << 8).save(tmp_path / "a.png", exif=exif)
    assert load_folder(tmp_path).images[0, 0].tolist() == [[4, 3], [2, 1]]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_broken_image_is_named(tmp_path, keep):
    write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32)))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: math.floor(keep * len(content))])
    with pytest.raises(ValueError, match=r"data must hold images, got '.*b\.png'"):
        load_folder(tmp_path)


def test_a_broken_image_is_skipped_with_its_name(tmp_path):
    write(tmp_path / "a.png", np.full((4, 4), 5))
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "0.png").write_bytes(b"")  # the first, which cannot tell its size
    with pytest.warns(UserWarning, match=r"skipped: data must hold images, got '.*[0b]\.png'") as warned:
        found = load_folder(tmp_path, on_error="skip")
    assert found.images.shape == (1, 1, 4, 4) and len(warned) == 2
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="data must be a folder with whole images"), pytest.warns(UserWarning):
        load_folder(tmp_path, on_error="skip")
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, got 'ignore'"):
        load_folder(tmp_path, on_error="ignore")


@pytest.mark.parametrize("error", [ValueError, RuntimeError, NotImplementedError, IndexError], ids=lambda e: e.__name__)
def test_whatever_a_reader_raises_the_image_is_skipped(tmp_path, monkeypatch, error):
    """As of ppm a size that is no number is a ValueError, of avif all that is broken a RuntimeError."""
    write(tmp_path / "0.bmp", np.zeros((4, 4)))  # the first, from which the size is read
    write(tmp_path / "a.png", np.full((6, 6), 5))

    def broken(self):
        raise error("broken")

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile._open", broken)
    with pytest.raises(ValueError, match=r"data must hold images, got '.*0\.bmp': "):
        load_folder(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped: data must hold images, got '.*0\.bmp'"):
        assert load_folder(tmp_path, on_error="skip").images.shape == (1, 1, 6, 6)


@pytest.mark.parametrize("size, limit", [((1 << 14, 1 << 14), "Pillow's"), ((300, 300), "ours")])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, size, limit):
    """Before a pixel is decoded: these files end after their header."""
    Image.new("1", size).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    if limit == "ours":
        monkeypatch.setattr(decode, "MAX_PIXELS", 300 * 300 - 1)
    with pytest.raises(ValueError, match=r"got '.*a\.png': must be of at most \d+ pixels"):
        load_folder(tmp_path, 8)


@pytest.mark.parametrize("paths, labels, classes", [
    (["cat/a.png", "dog/b.png", "cat/kitten/c.png"], [0, 0, 1], ("cat", "dog")),
    (["a.png", "cat/b.png"], None, None),  # one has no class
    (["cat/b.png"], None, None),  # one class tells nothing
])  # fmt: skip
def test_classes_are_the_folders_of_the_first_level(tmp_path, paths, labels, classes):
    for path in paths:
        write(tmp_path / path, np.zeros((4, 4)))
    found = load_folder(tmp_path)
    assert (found.labels if labels is None else found.labels.tolist()) == labels and found.classes == classes


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data must be a folder with images, got '.*' without any"):
        load_folder(tmp_path)
