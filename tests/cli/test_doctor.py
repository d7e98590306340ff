"""`fastdiff doctor` tells what runs here, and why the rest does not."""

import json
from types import SimpleNamespace

import pytest
import torch

import fastdiff
from fastdiff import build_info, cli
from fastdiff.cli import doctor
from fastdiff.ops import native
from fastdiff.ops._dispatch import BACKENDS, OPS, reason

NEVER_BUILT = {
    "version": None,
    "compiler": None,
    "simd_levels": [],
    "openmp": False,
    "nvcc": None,
    "cuda_archs": [],
    "reasons": {"cpu": "no C++ compiler here", "cuda": "no C++ compiler here"},
}
BUILT = {
    "version": "0.1.0",
    "compiler": "Clang 18.1",
    "simd_levels": ["avx2", "baseline"],
    "openmp": False,
    "nvcc": "13.0.88",
    "cuda_archs": [80, 90],
    "reasons": {"openmp": "clang has its own"},
}


def run(capsys, *arguments):
    assert cli.main(["doctor", *arguments]) == 0
    return capsys.readouterr().out


def test_json_holds_every_op_and_backend(capsys):
    report = json.loads(run(capsys, "--json"))
    assert report["versions"]["fastdiff"] == fastdiff.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["build"] == build_info.read()
    assert list(report["ops"]) == list(OPS)
    for op, row in report["ops"].items():
        assert list(row) == list(BACKENDS)
        assert row["reference"] is None
        assert row["cpu"] == reason(op, "cpu", "cpu")


def test_no_gpu_has_its_reason(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "gpus", lambda: ([], "no driver"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report = json.loads(run(capsys, "--json"))
    assert report["no_gpu"] == "no driver"
    for row in report["ops"].values():
        assert row["triton"] in ("no CUDA device: no driver", "has no convolution: on a GPU cuDNN's is used")
        assert row["cuda"]


def test_interpreter_makes_triton_available(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert doctor.against("q_sample", "triton", "no driver") is None


def test_examining_levels_leaves_the_level():
    before = native.simd_level()
    found = doctor.simd()
    assert native.simd_level() == before == found["level"]
    assert (before in found["available"]) if before else found["reason"]


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (
            "Found no NVIDIA driver on your system. Please check that you have one",
            "Found no NVIDIA driver on your system",
        ),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please",
            "is too old (found version 11040)",
        ),
    ],
)
def test_driver_missing_or_old(monkeypatch, raised, why):
    def init():
        raise RuntimeError(raised)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    devices, no_gpu = doctor.gpus()
    assert devices == [] and no_gpu.endswith(why)


def test_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert doctor.gpus() == ([], f"torch {torch.__version__} is built without CUDA")


def with_gpus(monkeypatch, *gpus):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)


def test_hidden_gpus(monkeypatch):
    with_gpus(monkeypatch)
    devices, no_gpu = doctor.gpus()
    assert devices == [] and "CUDA_VISIBLE_DEVICES" in no_gpu


def test_gpu_is_described(monkeypatch):
    with_gpus(monkeypatch, SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 * 2**30))
    devices, no_gpu = doctor.gpus()
    assert no_gpu is None
    assert devices == [{"type": "cuda", "name": "H100", "capability": 90, "memory_gib": 80.0}]
    assert "H100, sm_90, 80.0 GiB" in "\n".join(doctor.device_lines({"devices": devices, "no_gpu": None}))


def test_text_shows_each_reason_once(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "gpus", lambda: ([], "no driver"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    text = run(capsys)
    assert text.count("no CUDA device: no driver") == 1
    rows = {line.split()[0]: line for line in text.splitlines() if line.split() and line.split()[0] in OPS}
    assert list(rows) == list(OPS)
    assert all(line.endswith("yes") and "no [" in line for line in rows.values())


def test_text_without_native_kernels(monkeypatch):
    text = "\n".join(doctor.build_lines(NEVER_BUILT, {"level": None, "available": [], "reason": "not there"}))
    assert text.count("none: no C++ compiler here") == 2


def test_text_of_a_serial_build():
    text = "\n".join(doctor.build_lines(BUILT, {"level": "avx2", "available": ["avx2", "baseline"], "reason": None}))
    assert "Clang 18.1" in text and "one: clang has its own" in text
    assert "sm_80, sm_90, and PTX of the last" in text


def test_build_record_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(build_info, "_RECORD", tmp_path / "_build.json")
    record = build_info.read.__wrapped__()
    assert record["compiler"] is None and "pip install" in record["reasons"]["cpu"]
