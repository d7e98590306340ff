"""The kept counts, counts.json: instructions that lanes issue an element, our kernels' beside inductor's.

Inductor's are those of the plain definition of the same (plain.py), each kernel in its best configuration.
"""

import importlib.metadata
import json
from pathlib import Path

from .cases_losses import CASES, HALF

KEPT = Path(__file__).with_name("counts.json")
LANGUAGES = ("cuda", "triton")
SLACK = 1.02  # a change of less is none
THIRD = "group_norm_silu bf16 first"  # where ours must be a third of inductor's; elsewhere a half
# What executes more than that: its share of inductor's, rounded up.
MORE = {}


def counted():
    """The cases whose instructions are counted: float16 is what bfloat16 is."""
    return [name for name, case in CASES.items() if case.dtype is not HALF and case.variant != "empty"]


def names():
    """Of all rows."""
    return [f"{language} {case}" for case in counted() for language in ("inductor", *LANGUAGES)]


def share(row):
    """The part of inductor's instructions that a row may have."""
    case = row.partition(" ")[2]
    return MORE.get(row, 1 / 3 if case == THIRD else 1 / 2)


def most(row, counts):
    return share(row) * counts[f"inductor {row.partition(' ')[2]}"]


def toolchain():
    from . import cuda_kernels

    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    return {"cuda": cuda_kernels.target(), "triton": versions["triton"], "inductor": versions["torch"]}


def read():
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"toolchain": {}, "rows": {}}


def update(found):
    """Keeps what was counted, and drops the rows of cases that are no more."""
    rows = read()["rows"] | {name: round(result["count"], 2) for name, result in found.items() if result["count"]}
    lines = ",\n".join(f"  {json.dumps(name)}: {rows[name]}" for name in names() if name in rows)
    KEPT.write_text(f'{{"toolchain": {json.dumps(toolchain())}, "rows": {{\n{lines}\n}}}}\n')
