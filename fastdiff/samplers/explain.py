"""A plan in words: what each row computes."""

import math

_LEGEND = (
    "m: the network's output, v: its variance channels, x0: the estimate of the clean data, h0..h2: the history,",
    "noise: new standard normals, extra: a gradient of guidance, known: the data that a mask keeps.",
)


def explained(plan):
    """The rows of a plan as lines of text."""
    lines = [f"Plan of {len(plan)} rows, from {_number(plan.start)} * noise.", *_LEGEND]
    for row, time in enumerate(plan.time.tolist()):
        value = {name: plan[name][row].item() for name in _USED}
        lines.append(f"row {row}: {_network(plan.call[row], time, value)}")
        lines += [f"    {line}" for line in _formulas(value)]
        if plan.adjusted[row]:
            lines.append("    with coefficients that adjust() computes from the state of each sample")
    return "\n".join(lines)


_RESULT = {
    "c_x": "x", "c_0": "x0", "c_m": "m", "c_1": "h0", "c_2": "h1", "c_3": "h2", "g_x": "extra", "g_v": "s^2*extra",
}  # fmt: skip
_KEPT = {"q_x": "x", "q_0": "x0", "q_m": "m"}
_USED = ("w", "p_x", "p_m", "bound", "g_0", "l_0", "l_1", "std", "write", "k_0", "k_n", "c_in", *_RESULT, *_KEPT)


def _network(call, time, value):
    if not call:
        return "no network"
    fed = "x" if value["c_in"] == 1 else f"{_number(value['c_in'])}*x"
    guided = "" if value["w"] == 1 else f", guided with w = {_number(value['w'])}"
    return f"network asked at time {_number(time)} of {fed}{guided}"


def _formulas(value):
    estimate = _sum(value, {"p_x": "x", "p_m": "m"})
    if estimate != "0":
        if value["bound"] < math.inf:
            estimate = f"clip({estimate}, {_number(value['bound'])})"
        yield f"x0 = {estimate}" + (f" + {_number(value['g_0'])}*extra" if value["g_0"] else "")
    learned = value["l_0"] != 0 or value["l_1"] != 0
    if learned and (value["std"] or value["g_v"]):
        yield f"s = exp(({_number(value['l_0'])} + {_number(value['l_1'])}*v) / 2)"
    yield "x' = " + _sum(value, {**_RESULT, "std": "s*noise" if learned else "noise"})
    if value["write"] >= 0:
        yield f"h{int(value['write'])} = " + _sum(value, _KEPT)
    if value["k_0"] or value["k_n"]:
        yield "where a mask keeps: x' = " + _sum(value, {"k_0": "known", "k_n": "noise"})


def _sum(value, terms):
    """The terms whose coefficient is not 0: "0.5*x - x0"."""
    text = ""
    for name, term in terms.items():
        number = value[name]
        if number == 0:
            continue
        sign = ("-" if number < 0 else "") if not text else (" - " if number < 0 else " + ")
        text += sign + (term if abs(number) == 1 else f"{_number(abs(number))}*{term}")
    return text or "0"


def _number(value):
    return f"{value:.6g}"
