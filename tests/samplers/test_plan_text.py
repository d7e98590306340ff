"""A plan as JSON and in words."""

import json
import math

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import SigmaProcess
from fastdiff.samplers import SOLVERS, Plan
from fastdiff.samplers.plan_json import decoded
from fastdiff.samplers.solvers import OF_NODES

DISCRETE = GaussianProcess(schedules.linear(100), variance="learned_range")


@pytest.mark.parametrize("name", OF_NODES)
@pytest.mark.parametrize("clip", [1.0, None])
def test_json_keeps_every_bit(name, clip):
    plan = SOLVERS[name](DISCRETE, 7, clip=clip)
    copy = Plan.from_json(plan.to_json())
    assert torch.equal(copy.rows, plan.rows) and copy.rows.dtype is torch.float64
    assert torch.equal(copy.time, plan.time) and copy.time.dtype is plan.time.dtype
    for attribute in ("call", "start", "learned", "multistep", "scales_input"):
        assert getattr(copy, attribute) == getattr(plan, attribute)


def test_json_of_churn_on_sigmas():
    plan = SOLVERS["heun"](SigmaProcess(), 5, s_churn=3.0)
    copy = Plan.from_json(plan.to_json())
    assert copy.start == 80.0 and copy.call == plan.call and not all(plan.call)
    assert torch.equal(copy.time, plan.time) and torch.equal(copy.rows, plan.rows)


def test_json_is_strict():
    """No NaN or Infinity, which JSON does not have."""
    content = json.loads(SOLVERS["ddpm"](DISCRETE, 3, clip=None).to_json(), parse_constant=pytest.fail)
    assert content["columns"]["bound"] == ["inf"] * 3 and content["time"] == [99, 50, 0]


def changed(**fields):
    content = json.loads(SOLVERS["ddpm"](DISCRETE, 2).to_json())
    for name, value in fields.items():
        target = content["columns"] if name in content["columns"] else content
        if value is None:
            del target[name]
        else:
            target[name] = value
    return json.dumps(content)


@pytest.mark.parametrize("text, message", [
    ("{", "plan must be JSON, got an error at line 1"),
    ("[1, 2]", r"format must be 'fastdiff plan 1', got \[1, 2\]"),
    (changed(format="other"), "format must be 'fastdiff plan 1', got 'other'"),
    (changed(time=None), "time must be a list of numbers, got nothing"),
    (changed(time="99"), "time must be a list of numbers, got 99"),
    (changed(time=[]), r"time must be a list of numbers, got \[\]"),
    (changed(time=[True, 0]), "time must be a list of numbers"),
    (changed(time=[10**30, 0]), "time must be a list of numbers"),
    (changed(start="1"), "start must be a number, got 1"),
    (changed(start=-1.0), "start must be finite and positive, got -1.0"),
    (changed(call=[True]), r"call must be 2 booleans, got \[True\]"),
    (changed(call=[1, 0]), r"call must be 2 booleans, got \[1, 0\]"),
    (changed(columns=[]), r"columns must be an object, got \[\]"),
    (changed(columns={"c_9": [1, 2]}), "columns must be among w, p_x, .*, got 'c_9'"),
    (changed(c_x=None), "c_x must be 2 numbers, got nothing"),
    (changed(c_x=[1.0]), r"c_x must be 2 numbers, got \[1.0\]"),
    (changed(c_x=[1.0, "one"]), "c_x must be 2 numbers"),
    (changed(c_x=[1.0, "inf"]), "c_x must be finite in float32, got inf at row 1"),
    (changed(c_x=[1.0, math.nan]), "c_x must be finite in float32, got nan at row 1"),
    (changed(write=[5, 0]), "write must be -1, 0, 1 or 2, got 5.0 at row 0"),
])  # fmt: skip
def test_a_malformed_text_names_the_field(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_decoded_arguments_make_the_plan():
    assert {*decoded(changed())} >= {"time", "call", "start", "c_x", "bound"}


def test_rows_adjusted_by_a_function_are_not_saved():
    plan = Plan([1, 0], adjust=lambda *_: None, adjusted=[False, True])
    with pytest.raises(ValueError, match="adjusted must be False in a plan that is saved, got True at row 1"):
        plan.to_json()


def test_explain_says_what_each_row_does(capsys):
    text = SOLVERS["heun"](SigmaProcess("x0"), [2.0, 1.0, 0.0], s_churn=1.0, clip=1.0).explain()
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    assert lines[0] == "Plan of 5 rows, from 2 * noise."
    start = lines.index("row 0: no network")
    assert lines[start + 1] == "    x' = x + 2*noise"
    assert lines[start + 2 : start + 6] == [
        "row 1: network asked at time 2.82843 of x", "    x0 = clip(m, 1)",
        "    x' = 0.353553*x + 0.646447*x0", "    h0 = 0.676777*x + 0.323223*x0",
    ]  # fmt: skip
    assert "    x' = -0.914214*x + 0.914214*x0 + h0" in lines


def test_explain_of_learned_variance_guidance_and_masks():
    text = Plan(
        [5], p_x=1.0, p_m=-0.5, w=7.5, g_0=0.1, l_0=-3.0, l_1=0.5, std=1.0, c_x=1.0, c_in=0.5, k_0=1.0, k_n=0.2, g_v=1.0
    ).explain()
    for line in (
        "row 0: network asked at time 5 of 0.5*x, guided with w = 7.5",
        "    x0 = x - 0.5*m + 0.1*extra",
        "    s = exp((-3 + 0.5*v) / 2)",
        "    x' = x + s^2*extra + s*noise",
        "    where a mask keeps: x' = known + 0.2*noise",
    ):
        assert line in text.splitlines()
    adjusted = Plan([1], adjust=lambda *_: None, adjusted=True).explain()
    assert "adjust()" in adjusted and "    x' = 0" in adjusted
