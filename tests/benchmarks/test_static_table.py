"""The kept table: reading, writing, and what counts as worse."""

import json

import pytest

from benchmarks.static.table import KEPT, Table, worsened

ROW = {"language": "cuda", "kernel": "k<float>", "case": None, "arch": 90, "registers": 40, "spill": 0, "stack": 0,
       "shared": 256, "dynamic": 0, "threads": 256, "occupancy": 75, "load": 16, "store": 16,
       "trig": False}  # fmt: skip
OTHER = {**ROW, "language": "triton", "kernel": "j", "case": "op f32", "arch": 80}
TOOLCHAIN = {"cuda": "13.0", "triton": "3.8"}


def table(*rows, **toolchain):
    return Table({**TOOLCHAIN, **toolchain}, list(rows))


def test_equal_tables_differ_in_nothing():
    assert worsened(table(ROW, OTHER), table(OTHER, ROW)) == []


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("registers", 41, "registers 40 became 41"),
        ("spill", 4, "spill 0 became 4"),
        ("stack", 8, "stack 0 became 8"),
        ("shared", 512, "shared 256 became 512"),
        ("dynamic", 16, "dynamic 0 became 16"),
        ("occupancy", 62, "occupancy 75 became 62"),
        ("load", 8, "load 16 became 8"),
        ("store", 4, "store 16 became 4"),
        ("trig", True, "trig no became yes"),
    ],
)
def test_each_number_that_gets_worse_is_listed(name, value, line):
    changed = {**ROW, name: value}
    assert worsened(table(ROW, OTHER), table(changed, OTHER)) == [f"cuda k<float>, sm_90: {line}"]
    assert worsened(table(changed, OTHER), table(ROW, OTHER)) == []


def test_rows_come_and_go():
    new = {**ROW, "kernel": "new"}
    assert worsened(table(ROW), table(new)) == [
        "cuda k<float>, sm_90: no longer compiled",
        "cuda new, sm_90: not in the kept table",
    ]


def test_what_was_not_compiled_is_not_compared():
    assert worsened(table(ROW, OTHER, {**ROW, "arch": 80}), table(ROW)) == []


def test_another_compiler_answers_for_its_registers():
    worse = {**ROW, "registers": 50, "occupancy": 50, "shared": 300}
    assert worsened(table(ROW), table(worse, cuda="13.1")) == []
    assert len(worsened(table(ROW), table({**worse, "load": 8, "spill": 4}, cuda="13.1"))) == 2


def test_update_replaces_what_was_compiled():
    newer = table({**ROW, "registers": 32}, cuda="13.1")
    kept = table(ROW, OTHER, {**ROW, "kernel": "gone"}).updated(newer)
    assert kept.rows == [{**ROW, "registers": 32}, OTHER]
    assert kept.toolchain == {"cuda": "13.1", "triton": "3.8"}


def test_written_and_read(tmp_path):
    path = tmp_path / "static.json"
    table(OTHER, ROW).write(path)
    assert Table.read(path) == table(ROW, OTHER)
    assert [json.loads(line.rstrip(",")) for line in path.read_text().splitlines()[1:-1]] == [ROW, OTHER]


def test_kept_table_is_as_written(tmp_path):
    Table.read(KEPT).write(tmp_path / "static.json")
    assert (tmp_path / "static.json").read_text() == KEPT.read_text()


def test_a_row_twice_is_refused():
    with pytest.raises(ValueError, match="rows must differ"):
        table(ROW, ROW)


def test_printed_in_columns():
    header, first, second = table(ROW, OTHER).lines()
    assert header.split()[:4] == ["language", "kernel", "case", "arch"]
    assert first.split()[:5] == ["cuda", "k<float>", "-", "sm_90", "40"]
    assert len({header.index("registers") + 9, first.index(" 40 ") + 3, second.index(" 40 ") + 3}) == 1
