"""Images in .npz and .npy: layouts, names, labels, damage."""

import numpy as np
import pytest
import torch

from fastdiff.data.arrays import load_npy, load_npz


def save_npz(path, array):
    np.savez(path, array)
    return path


@pytest.mark.parametrize("shape, order", [
    ((5, 6, 4), (0, 1, 2)),
    ((5, 6, 4, 1), (0, 3, 1, 2)),
    ((5, 6, 4, 3), (0, 3, 1, 2)),
    ((5, 1, 6, 4), (0, 1, 2, 3)),
    ((5, 3, 6, 4), (0, 1, 2, 3)),
])  # fmt: skip
def test_layouts_of_npz(tmp_path, shape, order):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = load_npz(save_npz(tmp_path / "a.npz", array)).images
    assert found.shape[0] == 5 and found.shape[2:] == (6, 4) and found.is_contiguous()
    assert np.array_equal(found.numpy().reshape(array.transpose(order).shape), array.transpose(order))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_npz(tmp_path, dtype):
    array = np.array([-1, -0.5, 0, 0.5, 1], dtype).reshape(5, 1, 1)
    assert load_npz(save_npz(tmp_path / "a.npz", array)).images.flatten().tolist() == [0, 64, 128, 191, 255]


def test_names_in_npz(tmp_path):
    x, y = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", other=x, images=y)
    np.savez(tmp_path / "b.npz", other=y)
    for name in ("a", "b"):
        assert load_npz(tmp_path / f"{name}.npz").images.eq(1).all()


@pytest.mark.parametrize("name", ["labels", "y", "arr_1"])
def test_labels_of_npz(tmp_path, name):
    images = np.zeros((3, 4, 4), np.uint8)
    names = np.array(["a", "b", "c"])
    np.savez(tmp_path / "a.npz", arr_0=images, **{name: np.array([2, 0, 1], np.uint8)}, classes=names)
    found = load_npz(tmp_path / "a.npz")
    assert found.labels.tolist() == [2, 0, 1] and found.labels.dtype is torch.int64 and found.classes == ("a", "b", "c")
    for wrong, message in ((np.zeros(2, int), "labels must be 3 ints"), (np.zeros(3), "labels must be 3 ints"),
                           (np.array([0, -1, 0]), "labels must be at least 0 .*, got -1"),
                           (np.array([0, 0, 2**63], np.uint64), f"labels must be .* below .*, got {2**63}"),
                           (np.array(["a", "b", "c"]), "labels must be 3 ints, got <U1")):  # fmt: skip
        np.savez(tmp_path / "a.npz", arr_0=images, **{name: wrong})
        with pytest.raises(ValueError, match=message):
            load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", ">i4"])
def test_labels_of_other_ints(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 4, 4), np.uint8), labels=np.array([2, 0, 1], dtype))
    assert load_npz(tmp_path / "a.npz").labels.tolist() == [2, 0, 1]


def test_one_name_is_no_row_of_names(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 4, 4), np.uint8), classes=np.array("cat"))
    with pytest.raises(ValueError, match=r"classes must be a row of names, got shape \[\]"):
        load_npz(tmp_path / "a.npz")


def test_an_npz_by_the_name_of_an_npy(tmp_path):
    save_npz(tmp_path / "a.npz", np.zeros((3, 4, 4), np.uint8)).rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"data must be an \.npy with an array, got '.*a\.npy': an \.npz"):
        load_npy(tmp_path / "a.npy")


def test_npy_stays_on_the_disk(tmp_path):
    """A change of the tensor does not reach the file, and a change of the file is seen: nothing was copied."""
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), np.uint8)
    np.save(tmp_path / "a.npy", array)
    images = load_npy(tmp_path / "a.npy").images
    assert images.shape == (2, 3, 6, 4)
    with open(tmp_path / "a.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([array[-1, -1, -1, -1] ^ 255]))
    array[-1, -1, -1, -1] ^= 255
    assert np.array_equal(images.numpy(), array.transpose(0, 3, 1, 2))
    images[0, 0, 0, 0] ^= 255
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("array, message", [
    (np.zeros((2, 4, 4)), "data must be uint8 in an .npy, got float64"),
    (np.zeros((4, 4), np.uint8), r"data must hold \[N, H, W\], .*, got \[4, 4\]"),
    (np.array([[["text"]]], object), r"data must be an .npy with an array, got '.*a\.npy': "),
])  # fmt: skip
def test_bad_npy(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        load_npy(tmp_path / "a.npy")


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
        load_npz(save_npz(tmp_path / "a.npz", array))


def test_bad_npz(tmp_path):
    path = save_npz(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8))
    content = path.read_bytes()
    npy = tmp_path / "b.npy"
    np.save(npy, np.zeros((2, 2, 2), np.uint8))
    changed = content[:170] + bytes(255 - byte for byte in content[170:180]) + content[180:]
    for damaged in (content[:-30], changed, b"", b"text", npy.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data must be an \.npz with an array, got '.*a\.npz'"):
            load_npz(path)
    np.savez(path)
    with pytest.raises(ValueError, match="no array"):
        load_npz(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load_npz(tmp_path / "nothing.npz")
