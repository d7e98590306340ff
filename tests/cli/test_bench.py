"""`fastdiff bench --static` prints, checks and keeps the table of static numbers."""

from dataclasses import replace

import pytest

from benchmarks import static
from fastdiff import cli
from fastdiff.cli import bench

KEPT = static.Table.read(static.KEPT)


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Rows that stand for what the compilers say, at first those of the kept table, of which this is a copy."""
    rows = [dict(row) for row in KEPT.rows]
    monkeypatch.setattr(static, "collect", lambda archs: (static.Table(KEPT.toolchain, rows), {}))
    monkeypatch.setattr(static, "KEPT", tmp_path / "static.json")
    KEPT.write(static.KEPT)
    return rows


def test_prints_the_table(found, capsys):
    assert cli.main(["bench", "--static"]) == 0
    assert capsys.readouterr().out.splitlines() == list(KEPT.lines())


def test_check_passes_and_says_so(found, capsys):
    assert cli.main(["bench", "--static", "--check"]) == 0
    assert capsys.readouterr().out == f"{len(found)} kernels, none worse than in static.json\n"


def test_check_fails_on_a_planted_worsening(found, capsys):
    found[7]["registers"] += 1
    assert cli.main(["bench", "--static", "--check"]) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and found[7]["kernel"] in out and f"became {found[7]['registers']}" in out


def test_update_keeps_what_was_found(found):
    found[7]["registers"] += 1
    assert cli.main(["bench", "--static", "--update"]) == 0
    assert static.Table.read(static.KEPT).rows == found
    assert cli.main(["bench", "--static", "--check"]) == 0


def test_nothing_to_compile_with(monkeypatch, capsys):
    monkeypatch.setattr(static, "collect", lambda archs: (replace(KEPT, rows=[]), {"cuda": "no nvcc"}))
    assert cli.main(["bench", "--static"]) == 2
    assert "cuda: not compiled: no nvcc\nfastdiff: nvcc or Triton must be there" in capsys.readouterr().err


def test_needs_the_sources(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert cli.main(["bench", "--static"]) == 2
    assert "must run from a checkout" in capsys.readouterr().err


def test_static_must_be_asked_for():
    with pytest.raises(SystemExit):
        cli.main(["bench"])
