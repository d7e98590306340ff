"""`fastdiff bench` times and compares; with --static it prints, checks and keeps the table of static numbers."""

import json
from dataclasses import replace

import pytest

from benchmarks import static
from fastdiff import cli
from fastdiff.cli import bench, bench_runs

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


@pytest.fixture
def report(monkeypatch, tmp_path):
    """report(name, seconds): pytest-benchmark's JSON; runs write the one named new.json."""

    def write(name, fastdiff):
        times = {"eager": 2.0, "fastdiff": fastdiff}
        info = {"case": "op [256, 64] float32", "threads": 1, "moved": 10**9, "flops": None}
        entries = [{"extra_info": info | {"provider": p}, "stats": {"median": t}} for p, t in times.items()]
        machine = {"gpu": "a card", "torch": "2", "python_version": "3", "peaks": {"1": {"copy_gbps": 4.0}}}
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": entries, "machine_info": machine}))
        return str(path)

    monkeypatch.setattr(bench_runs, "run", lambda root, output, select: write("new.json", 1.0))
    return write


def timed(tmp_path, *options):
    return cli.main(["bench", "--output", str(tmp_path / "new.json"), *options])


def test_a_run_without_peers_leaves_no_chart(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    cases = {("normal [4]", 1): {"fastdiff": 1.0}, ("normal [4]", 2): {"fastdiff": 1.0, "fastdiff, erf": 1.0}}
    bench_runs.chart(cases, "machine", tmp_path / "chart.png")
    assert "compares fastdiff with nothing" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_leaves_a_table_and_a_chart(report, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert timed(tmp_path) == 0
    assert "| op [256, 64] float32 | 1 | 1000000.0 | 2.00 |" in capsys.readouterr().out
    written = (tmp_path / "new.md").read_text()
    assert "| 2.00 |" in written and "CALCULATED" in written
    assert "| op [256, 64] float32 | 1 | 1.0 GB/s | 25% of a copy |" in written
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("before, status", [(1.0, 0), (0.95, 0), (0.8, 1)])
def test_compare_flags_what_fell_beyond_the_threshold(report, tmp_path, capsys, before, status):
    assert timed(tmp_path, "--compare", report("old.json", before)) == status
    said = "2.50 times as fast as eager became 2.00" if status else "no ratio fell by more than 10%"
    assert said in capsys.readouterr().out


def test_threshold_is_followed(report, tmp_path):
    assert timed(tmp_path, "--compare", report("old.json", 0.8), "--threshold", "0.3") == 0


@pytest.mark.parametrize("text", ["{}", "no JSON", "[1]"])
def test_what_is_no_earlier_run_is_refused_before_the_run(report, tmp_path, capsys, monkeypatch, text):
    monkeypatch.setattr(bench_runs, "run", None)
    (tmp_path / "old.json").write_text(text)
    assert timed(tmp_path, "--compare", str(tmp_path / "old.json")) == 2
    assert "compare must be the --output of an earlier run, got" in capsys.readouterr().err


def test_the_folder_of_the_output_is_there_before_the_run(monkeypatch, tmp_path):
    """Pytest-benchmark would find out at the end of the run."""
    made = []

    def run(root, output, select):
        made.append(output.parent.is_dir())
        raise ValueError

    monkeypatch.setattr(bench_runs, "run", run)
    assert cli.main(["bench", "--output", str(tmp_path / "a" / "new.json")]) == 2 and made == [True]


def test_static_options_need_static(capsys):
    assert cli.main(["bench", "--check"]) == 2
    assert "must come with --static" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--select=q_sample", "--compare=old.json"])
def test_options_of_a_run_are_not_passed_over(capsys, option):
    assert cli.main(["bench", "--static", option]) == 2
    assert "--select and --compare must come without --static" in capsys.readouterr().err
    assert cli.main(["bench", "--floor", option]) == 2
    assert "--floor must come alone" in capsys.readouterr().err
