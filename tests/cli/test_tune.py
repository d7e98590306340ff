"""`fastdiff tune`: without a GPU it refuses; a stand-in for its clock shows what it writes."""

import json

import pytest
import torch

from fastdiff import cli
from fastdiff.cli import tune

blocks = pytest.importorskip("fastdiff.ops.triton.blocks")


def test_refuses_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FASTDIFF_HOME", str(tmp_path))
    assert cli.main(["tune"]) == 2
    assert "fastdiff tune must run where PyTorch finds a CUDA GPU, got none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def prefers_small_warps(row):
    """A clock."""
    now = next(each for each in blocks.rows(None) if (each.kind, each.most) == (row.kind, row.most))
    return now.per_warp


@pytest.mark.parametrize("dry_run", [False, True])
def test_writes_the_table_that_is_read_again(monkeypatch, tmp_path, capsys, dry_run):
    monkeypatch.setenv("FASTDIFF_HOME", str(tmp_path / "new"))
    tune.keep(blocks, "A card", prefers_small_warps, dry_run)
    said = capsys.readouterr().out
    assert "per_warp=128), before 1024, 256" in said
    assert ("written to" in said) is not dry_run
    if dry_run:
        assert not (tmp_path / "new").exists()
        return
    assert json.loads(blocks.path("A card").read_text())["gpu"] == "A card"
    table = blocks.read("A card")
    assert [each.per_warp for each in table] == [each.per_warp // 2 for each in blocks.BUILT_IN]


@pytest.mark.parametrize("row", blocks.BUILT_IN, ids=str)
def test_the_work_of_a_row_takes_that_row(row, monkeypatch):
    shape, used, find = tune.shape_of(row), [], blocks.row
    monkeypatch.setattr(blocks, "row", lambda *arguments: used.append(find(*arguments)) or used[-1])
    monkeypatch.setattr(tune, "shape_of", lambda row: shape)
    monkeypatch.setattr("triton.runtime.jit.KernelInterface.__getitem__", lambda *_: lambda *_, **__: None)
    monkeypatch.setattr("triton.runtime.interpreter.InterpretedFunction.__getitem__", lambda *_: lambda *_, **__: None)
    tune.work(row, "cpu", batch=1)()
    assert row in used
