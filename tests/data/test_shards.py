"""WebDataset and Parquet shards, torchvision's data sets."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import load


def encoded(value, size=(6, 4)):
    content = io.BytesIO()
    Image.new("RGB", size, (value, 2, 3)).save(content, format="PNG")
    return content.getvalue()


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


# ---- WebDataset ----


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    for shard in range(2):
        samples = []
        for i in (2 * shard, 2 * shard + 1):
            samples += [(f"{i:04d}.png", encoded(i)), (f"{i:04d}.cls", str(7 - i).encode())]
        write_tar(tmp_path / f"{shard:02d}.tar", samples)
    return tmp_path


def test_webdataset(shards):
    """A folder of shards in the order of their names, or one of them."""
    found = load(shards)
    assert found.images.shape == (4, 3, 4, 4) and found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.labels.tolist() == [7, 6, 5, 4]
    assert load(shards / "01.tar", image_size=2).images.shape == (2, 3, 2, 2)


def test_bad_webdataset(tmp_path):
    pytest.importorskip("webdataset")
    for name, content, message in (
        ("a.png", b"no image", r"data must hold images, got 'a' in '.*x\.tar': must be a whole image"),
        ("a.txt", b"text", r"data must hold a png, .* in each sample, got 'a' without"),
        ("a.cls", b"cat", r"labels must be ints, got b'cat' of sample 'a'"),
    ):
        write_tar(tmp_path / "x.tar", [("a.png", encoded(1))] * (name == "a.cls") + [(name, content)])
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", [("a.png", encoded(1)), ("a.cls", b"1"), ("b.png", encoded(2))])
    with pytest.raises(ValueError, match="labels must be given for every image or for none, got some"):
        load(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", [])
    with pytest.raises(ValueError, match=r"data must hold images, got none in .*x\.tar"):
        load(tmp_path / "x.tar")


@pytest.mark.parametrize("size", [0, 100, 700, 2 * 1024, 2 * 1024 + 100, 3 * 1024])
def test_a_cut_tar_is_refused(tmp_path, size):
    """Also where the cut lies between two files, or in the head of one, and tarfile would end there in peace."""
    pytest.importorskip("webdataset")
    write_tar(tmp_path / "x.tar", [(f"{i}.png", encoded(i)) for i in range(4)])
    content = (tmp_path / "x.tar").read_bytes()
    assert len(encoded(3)) <= 512  # so that a file takes 1024 bytes
    (tmp_path / "x.tar").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"data must be a whole \.tar, got '.*x\.tar'"):
        load(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(content)
    assert len(load(tmp_path / "x.tar").images) == 4


# ---- Parquet ----


@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"bytes": content, "path": None}])
@pytest.mark.parametrize("name", ["image", "img"])
def test_parquet(tmp_path, wrap, name):
    write_parquet(tmp_path / "a.parquet", **{name: [wrap(encoded(i)) for i in range(5)]}, label=[4, 3, 2, 1, 0])
    found = load(tmp_path / "a.parquet")
    assert found.images[:, 0, 1, 2].tolist() == [0, 1, 2, 3, 4] and found.labels.tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("values", [["a.png"], [7], [{"path": "a.png"}]], ids=["text", "number", "path"])
def test_parquet_without_bytes(tmp_path, values):
    write_parquet(tmp_path / "x.parquet", image=values)
    with pytest.raises(ValueError, match=r"data must hold encoded images, got \w+ as 'row 0' in '.*x\.parquet'"):
        load(tmp_path / "x.parquet")


def test_bad_parquet(tmp_path):
    write_parquet(tmp_path / "a.parquet", picture=[encoded(0)])
    with pytest.raises(ValueError, match=r"data must have a column image or img, got picture in '.*a\.parquet'"):
        load(tmp_path / "a.parquet")
    write_parquet(tmp_path / "a.parquet", image=[encoded(0), b"no image"])
    with pytest.raises(ValueError, match=r"data must hold images, got 'row 1' in '.*a\.parquet'"):
        load(tmp_path / "a.parquet")


# ---- torchvision ----


def test_torchvision(tmp_path):
    """The files that torchvision's CIFAR10 reads, made here; its own check sums are told to trust them."""
    datasets = pytest.importorskip("torchvision.datasets")
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 32, 32), np.uint8)
    root = tmp_path / datasets.CIFAR10.base_folder
    root.mkdir()
    for batch, part in enumerate(images):
        content = {"data": part.reshape(4, -1), "labels": [batch] * 4}
        (root / f"data_batch_{batch + 1}").write_bytes(pickle.dumps(content))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
        found = load("torchvision:CIFAR10", data_dir=tmp_path)
    assert torch.equal(found.images, torch.from_numpy(images.reshape(20, 3, 32, 32)))
    assert found.labels.tolist() == [i // 4 for i in range(20)] and found.classes == tuple("abcdefghij")


def test_bad_torchvision(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match=r"data_dir must hold torchvision's MNIST, got '.*'"):
        load("torchvision:MNIST", data_dir=tmp_path)
    for name in ("Cifar", "VisionDatasets", "utils"):
        with pytest.raises(ValueError, match=rf"data must name one of torchvision.datasets, got '{name}'"):
            load(f"torchvision:{name}", data_dir=tmp_path)
