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


# ---- Digits ----


def test_digits():
    images, labels = sources.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype is torch.uint8
    assert torch.equal(load("digits").images, images)
    assert labels.dtype is torch.int64 and (labels.bincount() >= 170).all() and len(labels.bincount()) == 10
    assert torch.equal(load("digits").labels, labels) and load("digits").classes[7] == "7"
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
    assert found.images.dtype is torch.uint8 and np.array_equal(found.images[:, 0].numpy(), clothes)
    assert found.labels is None and found.classes is None


def test_labels_of_fashion_mnist(tmp_path, clothes):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(clothes))
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + bytes([9, 0, 3, 1, 1])))
    found = load("fashion-mnist", data_dir=tmp_path)
    assert found.labels.tolist() == [9, 0, 3, 1, 1] and found.classes[9] == "Ankle boot"
    for wrong in (bytes([9, 0, 3, 1]), bytes([9, 0, 3, 1, 10])):
        path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", len(wrong)) + wrong))
        with pytest.raises(ValueError, match=r"labels must be 5 in \[0, 10\), got .* in '.*labels.*'"):
            load("fashion-mnist", data_dir=tmp_path)


def test_fashion_mnist_of_debian(tmp_path, clothes, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(clothes)))
    assert load("fashion-mnist").images.shape == (5, 1, 28, 28)


def test_where_debian_puts_it():
    assert str(sources.DEBIAN_FASHION_MNIST) == "/usr/share/datasets/fashion-mnist"
    if not sources.DEBIAN_FASHION_MNIST.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    found, labels, _ = load("fashion-mnist")
    assert labels.bincount().tolist() == [6000] * 10
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


# ---- By name ----


def test_a_folder(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert load(str(tmp_path)).images.shape == (1, 1, 4, 4)
    assert load(tmp_path, image_size=2).images.shape == (1, 1, 2, 2)


def test_arrays_by_their_suffix(tmp_path, clothes):
    np.save(tmp_path / "a.npy", clothes)
    np.savez(tmp_path / "a.npz", clothes)
    for name in ("a.npy", "a.npz"):
        assert np.array_equal(load(tmp_path / name).images[:, 0].numpy(), clothes)


@pytest.mark.parametrize("arguments, message", [
    ({"data": "cifar"}, r"data must be digits, fashion-mnist, torchvision:NAME, a folder .* got 'cifar'"),
    ({"data": "digits", "image_size": 8}, "image_size must be None but for folders and shards of images, got 8"),
    ({"data": ".", "image_size": 0}, "image_size must be positive, got 0"),
    ({"data": "digits", "data_dir": "x"}, "data_dir must be None but for fashion-mnist and torchvision, got 'x'"),
    ({"data": "torchvision:CIFAR10"}, "data_dir must be given for 'torchvision:CIFAR10'"),
    ({"data": "digits", "on_error": "skip"}, "on_error must be raise but for a folder of images, got 'skip'"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)
