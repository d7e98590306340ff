"""A plan as JSON: every number to its last bit."""

import json
import math

from ..ops.rows import NAMES

_FORMAT = "fastdiff plan 1"


def encoded(plan):
    """The text of a plan. ValueError where rows are adjusted by a function, which no text holds."""
    if any(plan.adjusted):
        raise ValueError(f"adjusted must be False in a plan that is saved, got True at row {plan.adjusted.index(True)}")
    columns = {name: [_number(value) for value in plan[name].tolist()] for name in NAMES}
    content = {"format": _FORMAT, "start": plan.start, "time": plan.time.tolist(), "call": list(plan.call)}
    return json.dumps({**content, "columns": columns}, indent=1, allow_nan=False)


def decoded(text):
    """The arguments of the Plan of a text. ValueError that names the field which is missing or wrong."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"plan must be JSON, got an error at line {error.lineno}: {error.msg}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        got = content.get("format") if isinstance(content, dict) else content
        raise ValueError(f"format must be {_FORMAT!r}, got {got!r}")
    start = _field(content, "start", _is_number, "a number")
    time = _field(content, "time", lambda value: _is_list(value, _is_number) and value, "a list of numbers")
    S = len(time)
    flags = _field(content, "call", lambda value: _is_list(value, _is_flag, S), f"{S} booleans")
    columns = _field(content, "columns", lambda value: isinstance(value, dict), "an object")
    unknown = sorted({*columns} - {*NAMES})
    if unknown:
        raise ValueError(f"columns must be among {', '.join(NAMES)}, got {unknown[0]!r}")
    rows = {name: _field(columns, name, lambda value: _is_list(value, _is_entry, S), f"{S} numbers") for name in NAMES}
    return {
        "time": time, "call": flags, "start": start,
        **{name: [math.inf if value == "inf" else value for value in column] for name, column in rows.items()},
    }  # fmt: skip


def _number(value):
    return "inf" if value == math.inf else value


def _field(content, name, holds, rule):
    if name not in content:
        raise ValueError(f"{name} must be {rule}, got nothing")
    if not holds(content[name]):
        raise ValueError(f"{name} must be {rule}, got {str(content[name])[:80]}")
    return content[name]


def _is_number(value):
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _is_entry(value):
    return value == "inf" or _is_number(value)


def _is_flag(value):
    return isinstance(value, bool)


def _is_list(value, holds, length=None):
    return isinstance(value, list) and (length is None or len(value) == length) and all(map(holds, value))
