"""The native build's objects and logs serve where they are of these very sources, and say what a compile would."""

import os
import platform
import subprocess

import pytest

from benchmarks.static import built, cuda, ptx

NINJA = """
rule nvcc
  command = cp $in $out && cp $in $out.log  # -gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=sm_90 -c
build build/native/cuda/op.o: nvcc csrc/op.cu
"""
SOURCE = cuda.ROOT / "csrc/cuda/normal.cu"


@pytest.fixture
def target(tmp_path, monkeypatch):
    """An object that ninja built in a repository of one source."""
    if not built.ninja():
        pytest.skip("needs ninja")
    monkeypatch.setattr(built, "ROOT", tmp_path)
    for name, text in {"setup.py": "", "csrc/op.cu": "source", "build/native/nvcc.version": "13.0"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "build/native/build.ninja").write_text(NINJA)
    subprocess.run([built.ninja(), "-f", "build/native/build.ninja"], cwd=tmp_path, check=True)
    return tmp_path / "build/native/cuda/op.o"


def newer(path):
    now = os.stat(path).st_mtime + 10
    os.utime(path, (now, now))


def test_built_of_these_sources(target):
    assert built.is_current(target, 80, "13.0") and built.is_current(target, 90, "13.0")


def test_not_built_for_an_architecture_or_by_another_nvcc(target):
    assert not built.is_current(target, 100, "13.0")
    assert not built.is_current(target, 90, "13.1")


@pytest.mark.parametrize("name", ["setup.py", "csrc/op.cu"])
def test_something_changed_since(target, tmp_path, name):
    newer(tmp_path / name)
    assert not built.is_current(target, 90, "13.0")


@pytest.mark.parametrize("name", ["cuda/op.o", "cuda/op.o.log", "build.ninja"])
def test_something_is_missing(target, tmp_path, name):
    (tmp_path / "build/native" / name).unlink()
    assert not built.is_current(target, 90, "13.0")


@pytest.mark.parametrize("arch", cuda.ARCHS)
def test_says_what_a_compile_says(arch):
    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    found = built.made(SOURCE, arch, cuda.version())
    if not found:
        pytest.skip(f"build/native-{platform.machine()} has no such object of these sources")
    mine, theirs = ptx.facts(*found, arch), ptx.facts(*cuda.compiled(SOURCE, arch), arch)
    by_name = [{name: facts[symbol] for symbol, name in cuda.names(facts).items()} for facts in (mine, theirs)]
    assert by_name[0] and by_name[0] == by_name[1]
