"""Plan: the table and its checks."""

import math

import pytest
import torch

from fastdiff import ops
from fastdiff.ops.rows import COLUMNS, NAMES
from fastdiff.samplers import Plan


def test_columns_lie_where_the_kernel_reads_them():
    columns = {name: [3.0 + i, 2.0, 1.0] for i, name in enumerate(NAMES) if name != "write"}
    plan = Plan([9, 5, 0], write=[0, 1, -1], **columns)
    assert len(plan) == 3 and plan.rows.dtype is torch.float64
    for i, name in enumerate(NAMES):
        if name != "write":
            assert plan.rows[0, i] == plan[name][0] == 3.0 + i
    assert plan.rows[:, COLUMNS["write"]].tolist() == [0, 1, -1]
    assert plan.table("cpu").dtype is torch.float32
    assert torch.equal(plan.table("cpu", torch.float64), plan.rows)


def test_columns_not_given_do_nothing():
    """A row of defaults reads nothing at all and gives 0."""
    plan = Plan([0], call=False)
    assert plan["bound"].tolist() == [math.inf] and plan["write"].tolist() == [-1]
    assert plan["w"].tolist() == plan["c_in"].tolist() == [1]
    x = torch.full((1, 1, 2, 2), math.nan)
    assert torch.equal(ops.reverse_step(x, None, plan.table(), torch.tensor(0)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("time, dtype", [([3, 0], torch.int64), ([0.1, 0.0], torch.float64),
                                         (torch.tensor([2, 1], dtype=torch.int32), torch.int64)])  # fmt: skip
def test_time_keeps_integers_and_all_digits(time, dtype):
    plan = Plan(time)
    assert plan.time.dtype is dtype and plan.time.tolist() == list(time)


def test_what_a_plan_needs():
    plain = Plan([1, 0], c_0=1, p_x=1)
    assert not (plain.learned or plain.multistep or plain.scales_input) and plain.call == (True, True)
    assert plain.input_scale == 1 and Plan([1, 0], c_in=[0.5, 1]).input_scale == 0.5
    assert Plan([1, 0], c_in=[1, 0.5]).scales_input
    assert Plan([1, 0], l_1=[0, 1]).learned
    assert Plan([1, 0], write=[0, -1]).multistep and Plan([1, 0], c_2=[0, 1]).multistep
    assert Plan([1, 0], call=[False, True]).call == (False, True)


def test_estimates_give_x0_of_the_same_row():
    plan = Plan([1], p_x=2.0, p_m=-1.0, bound=1.5, c_x=0.3, c_0=0.4, std=0.5)
    x, m = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.5, 0.5]]]])
    x0 = ops.reverse_step(x, m, plan.estimates().table(), torch.tensor(0))
    assert x0.flatten().tolist() == [0.5, 1.5]


def test_replace_keeps_all_else():
    def adjust(rows, row, x, model_output, noise):
        pass

    plan = Plan([1, 0], call=[False, True], start=80, adjust=adjust, adjusted=[True, False], c_x=0.5, std=[1, 0])
    changed = plan.replace(w=[7.5, 1])
    assert changed["w"].tolist() == [7.5, 1] and torch.equal(changed.rows[:, 1:], plan.rows[:, 1:])
    for name in ("call", "start", "adjust", "adjusted"):
        assert getattr(changed, name) == getattr(plan, name)
    assert plan["w"].tolist() == [1, 1]


def test_repr_shows_the_columns_in_use():
    text = repr(Plan(range(99, -1, -1), p_x=0.5, c_0=torch.linspace(1, 2, 100), std=[1.0] * 99 + [0.0]))
    lines = text.splitlines()
    assert lines[0] == "Plan of 100 rows"
    assert lines[1].split() == ["row", "time", "call", "p_x", "c_0", "std"]
    assert lines[2].split() == ["0", "99", "yes", "0.5", "1", "1"]
    assert lines[5].split() == ["..."]
    assert lines[-1].split() == ["99", "0", "yes", "0.5", "2", "0"] and len(lines) == 8
    assert "..." not in repr(Plan([2, 1, 0], c_x=1))


@pytest.mark.parametrize("columns, kind, message", [
    ({"p_x": math.nan}, ValueError, "p_x must be finite in float32, got nan at row 0"),
    ({"c_0": [1.0, math.inf]}, ValueError, "c_0 must be finite in float32, got inf at row 1"),
    ({"c_m": [1.0, 1e39]}, ValueError, r"c_m must be finite in float32, got 1e\+39 at row 1"),
    ({"bound": 0}, ValueError, r"bound must be positive \(inf for no clip\), got 0.0 at row 0"),
    ({"bound": math.nan}, ValueError, r"bound must be positive"),
    ({"write": 3}, ValueError, r"write must be -1, 0, 1 or 2, got 3.0 at row 0"),
    ({"std": [1.0]}, ValueError, r"std must be a number or have shape \[2\], got \[1\]"),
    ({"std": "large"}, TypeError, r"std must be a number or 2 of them, got str"),
    ({"c_9": 1.0}, TypeError, r"columns must be among w, p_x, .*, got 'c_9'"),
    ({"call": [True]}, ValueError, r"call must be a bool or 2 of them, got 1"),
    ({"adjusted": True}, TypeError, r"adjust must be callable where rows are adjusted, got NoneType"),
    ({"start": 0.0}, ValueError, r"start must be finite and positive, got 0.0"),
])  # fmt: skip
def test_bad_columns(columns, kind, message):
    with pytest.raises(kind, match=message):
        Plan([1, 0], **columns)


@pytest.mark.parametrize("time", [[], [[1]], [math.nan]])
def test_bad_time(time):
    with pytest.raises(ValueError, match=r"time must be \[S\] finite numbers with S at least 1"):
        Plan(time)
