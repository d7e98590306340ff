"""The floor times that `fastdiff bench --floor` prints."""

import re

import pytest

from benchmarks import floor, ledger
from fastdiff import cli
from tests.ops.test_reverse_step import DDPM


def rows():
    return [line.strip("| ").split(" | ") for line in floor.table().splitlines() if line.startswith("| ")][1:]


def test_a_floor_is_bytes_over_bandwidth():
    assert floor.floor_us({"x": 3_000_000, "y": 350_000}, 3350) == pytest.approx(1.0)
    _, count, *times = next(row for row in rows() if row[0] == "normal [64, 4, 64, 64] float32")
    assert int(count) == 64 * 4 * 64 * 64 * 4 + 16 + 64 * 8
    assert times == [f"{int(count) / peak / 1e3:.2f}" for peak in floor.PEAKS.values()]


def test_every_op_and_gpu_has_a_floor():
    names = {re.match(r"\w+", row[0])[0] for row in rows()}
    ops = "normal|q_sample|reverse_step|group_norm_silu|diffusion_loss|vlb_terms|rms_norm_silu$"
    assert names == {name for name in vars(ledger) if re.match(ops, name)}
    assert all(len(row) == 2 + len(floor.PEAKS) and all(float(each) > 0 for each in row[1:]) for row in rows())


def test_the_row_is_ddpms():
    assert {name for name, value in DDPM.items() if value} - {"bound", "write", "c_in"} == set(floor.DDPM)


def test_it_is_called_a_calculation(capsys):
    assert cli.main(["bench", "--floor"]) == 0
    said = capsys.readouterr().out
    assert said == floor.table() + "\n" and "CALCULATED" in said.splitlines()[0] and "measured" in said


@pytest.mark.parametrize("option", ["--static", "--compare=old.json"])
def test_floors_need_no_other_option(option, capsys):
    assert cli.main(["bench", "--floor", option]) == 2
    assert "--floor must come alone" in capsys.readouterr().err
