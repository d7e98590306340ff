"""Data by name, and what is said where it is missing or wrong."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import load, sources


def idx(array):
    return b"\x00\x00\x08\x03" + struct.pack(">III", *array.shape) + array.tobytes()


@pytest.fixture
def clothes():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


def save_npz(path, array):
    np.savez(path, array)
    return path


# ---- Digits ----


def test_digits():
    images, labels = sources.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype is torch.uint8 and torch.equal(load("digits"), images)
    assert labels.dtype is torch.int64 and (labels.bincount() >= 170).all() and len(labels.bincount()) == 10
    assert len(images.unique()) == 17 and images.max() == 255 and images.min() == 0
    assert images[labels == 0].float().mean(0)[0, 3:5, 3:5].mean() < 30  # the hole of the mean 0
    assert images[labels == 1].float().mean(0)[0, 3:5, 3:5].mean() > 150  # the stroke of the mean 1


# ---- Fashion-MNIST ----


@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_of_data_dir(tmp_path, clothes, folder, packed):
    """The files themselves, or torchvision's root; as downloaded or unpacked."""
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    content = gzip.compress(idx(clothes)) if packed else idx(clothes)
    (tmp_path / folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}").write_bytes(content)
    found = load("fashion-mnist", data_dir=tmp_path)
    assert found.dtype is torch.uint8 and np.array_equal(found[:, 0].numpy(), clothes)


def test_fashion_mnist_of_debian(tmp_path, clothes, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(clothes)))
    assert load("fashion-mnist").shape == (5, 1, 28, 28)


def test_where_debian_puts_it():
    assert str(sources.DEBIAN_FASHION_MNIST) == "/usr/share/datasets/fashion-mnist"
    if not sources.DEBIAN_FASHION_MNIST.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    found = load("fashion-mnist")
    assert found.shape == (60000, 1, 28, 28) and found.float().mean().item() == pytest.approx(0.2860 * 255, abs=0.1)


@pytest.mark.parametrize("data_dir", [None, "elsewhere"])
def test_fashion_mnist_that_is_absent(tmp_path, monkeypatch, data_dir):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"`apt-get install dataset-fashion-mnist`.*--data-dir") as error:
        load("fashion-mnist", data_dir=data_dir and tmp_path / data_dir)
    assert (data_dir or "nowhere") in str(error.value)


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1],
    lambda content: content[:10],
    lambda content: b"",
    lambda content: b"\x00\x00\x08\x01" + content[4:],
])  # fmt: skip
def test_a_damaged_idx_file(tmp_path, clothes, damage):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damage(idx(clothes)))
    with pytest.raises(ValueError, match=r"data must be .*, got .* in '.*ubyte'"):
        load("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[:-20], lambda c: c[:40] + c[60:], lambda c: b"no gzip" + c])
def test_a_damaged_gz(tmp_path, clothes, damage):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damage(gzip.compress(idx(clothes))))
    with pytest.raises(ValueError, match=r"data must be whole, got '.*ubyte\.gz'"):
        load("fashion-mnist", data_dir=tmp_path)


# ---- Arrays ----


@pytest.mark.parametrize("shape, order", [
    ((5, 6, 4), (0, 1, 2)),
    ((5, 6, 4, 1), (0, 3, 1, 2)),
    ((5, 6, 4, 3), (0, 3, 1, 2)),
    ((5, 1, 6, 4), (0, 1, 2, 3)),
    ((5, 3, 6, 4), (0, 1, 2, 3)),
])  # fmt: skip
def test_layouts_of_npz(tmp_path, shape, order):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = load(str(save_npz(tmp_path / "a.npz", array)))
    assert found.shape[0] == 5 and found.shape[2:] == (6, 4) and found.is_contiguous()
    assert np.array_equal(found.numpy().reshape(array.transpose(order).shape), array.transpose(order))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_npz(tmp_path, dtype):
    array = np.array([-1, -0.5, 0, 0.5, 1], dtype).reshape(5, 1, 1)
    assert load(str(save_npz(tmp_path / "a.npz", array))).flatten().tolist() == [0, 64, 128, 191, 255]


def test_names_in_npz(tmp_path):
    x, y = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", labels=x, images=y)
    np.savez(tmp_path / "b.npz", other=y)
    for name in ("a", "b"):
        assert load(str(tmp_path / f"{name}.npz")).eq(1).all()


@pytest.mark.parametrize("array, message", [
    (np.zeros((4, 4), np.uint8), r"data must hold \[N, H, W\], .*, got \[4, 4\]"),
    (np.zeros((2, 4, 4, 2), np.uint8), r"data must hold .*, got \[2, 4, 4, 2\]"),
    (np.zeros((0, 4, 4), np.uint8), r"data must hold .*, got \[0, 1, 4, 4\]"),
    (np.zeros((2, 4, 4), np.int64), r"data must be uint8 or floats in \[-1, 1\], got int64"),
    (np.full((2, 4, 4), 1.5), r"data must be uint8 or floats in \[-1, 1\], got \[1\.5, 1\.5\]"),
    (np.full((2, 4, 4), np.nan), r"data must be uint8 or floats in \[-1, 1\], got \[nan, nan\]"),
    (np.array([[["text"]]]), r"data must be uint8 or floats in \[-1, 1\], got <U4"),
    (np.array([[[None]]]), r"data must be an \.npz with an array, got '.*a\.npz': "),
])  # fmt: skip
def test_bad_arrays(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        load(str(save_npz(tmp_path / "a.npz", array)))


def test_bad_npz(tmp_path):
    path = save_npz(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8))
    content = path.read_bytes()
    npy = tmp_path / "b.npy"
    np.save(npy, np.zeros((2, 2, 2), np.uint8))
    changed = content[:170] + bytes(255 - byte for byte in content[170:180]) + content[180:]
    for damaged in (content[:-30], changed, b"", b"text", npy.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data must be an \.npz with an array, got '.*a\.npz'"):
            load(str(path))
    np.savez(path)
    with pytest.raises(ValueError, match="no array"):
        load(str(path))
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load(str(tmp_path / "nothing.npz"))


# ---- By name ----


def test_a_folder(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert load(str(tmp_path)).shape == (1, 1, 4, 4)
    assert load(tmp_path, image_size=2).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("arguments, message", [
    ({"data": "cifar"}, r"data must be digits, fashion-mnist, a folder of images or an \.npz, got 'cifar'"),
    ({"data": "digits", "image_size": 8}, "image_size must be None but for a folder of images, got 8 for 'digits'"),
    ({"data": ".", "image_size": 0}, "image_size must be positive, got 0"),
    ({"data": "digits", "data_dir": "x"}, "data_dir must be None but for fashion-mnist, got 'x' for 'digits'"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)
