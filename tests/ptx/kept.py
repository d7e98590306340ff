"""The kept counts, counts.json: instructions that lanes issue an element, our kernels' beside inductor's.

Inductor's are those of the plain definition of the same (plain.py), each kernel in its best configuration.
"""

import importlib.metadata
import json
import math
from pathlib import Path

from .cases_losses import CASES, HALF, NARROW, ROWS, WIDE

KEPT = Path(__file__).with_name("counts.json")
LANGUAGES = ("cuda", "triton")
SLACK = 1.02  # a change of less is none
THIRD = "group_norm_silu bf16 first"  # where ours must be a third of inductor's; elsewhere a half
DRAWN = ("of u8 drawn", "of f32 drawn", "of f32 given", "of u8 training")
VARIANTS = {  # that are counted in bfloat16 and in float32
    "normal": ([""], [""]),
    "q_sample": (DRAWN, DRAWN),
    "reverse_step": (list(ROWS), list(ROWS)),
    "group_norm_silu": (["", "film", "dropout"], [""]),
    "rms_norm_silu": (["", "film"], [""]),
    "diffusion_loss": (["large", "learned"], []),
    "vlb_terms": (["large", "decoder", "exact"], []),
}


def is_counted(case):
    """bfloat16, and float32 of some; the other variants serve to reach other kernels."""
    narrow, wide = VARIANTS[case.op.removesuffix("_backward")]
    return case.variant in {NARROW: narrow, WIDE: wide, HALF: ()}[case.dtype]


def counted():
    """The cases whose instructions are counted."""
    return [name for name, case in CASES.items() if is_counted(case)]


def names():
    """Of all rows."""
    return [f"{language} {case}" for case in counted() for language in ("inductor", *LANGUAGES)]


def allowed(row):
    """The part of inductor's instructions that a row is to have at most."""
    return 1 / 3 if row.partition(" ")[2] == THIRD else 1 / 2


def share(row, counts):
    return counts[row] / counts[f"inductor {row.partition(' ')[2]}"]


def too_many(counts):
    """The shares of inductor's, rounded up, that are more than allowed."""
    rows = [f"{language} {case}" for language in LANGUAGES for case in counted()]
    return {row: math.ceil(100 * share(row, counts)) / 100 for row in rows if share(row, counts) > allowed(row)}


def toolchain():
    from . import cuda_kernels

    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    return {"cuda": cuda_kernels.target(), "triton": versions["triton"], "inductor": versions["torch"]}


def read():
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"toolchain": {}, "rows": {}}


def update(found):
    """Keeps what was counted, and drops the rows of cases that are no more."""
    before, now = read(), toolchain()
    counted = {name: round(result["count"], 2) for name, result in found.items() if result["count"]}
    rows, versions = before["rows"] | counted, before["toolchain"]
    versions = versions | {language: now[language] for language in {name.split()[0] for name in counted} & now.keys()}
    lines = ",\n".join(f"  {json.dumps(name)}: {rows[name]}" for name in names() if name in rows)
    KEPT.write_text(f'{{"toolchain": {json.dumps(versions, sort_keys=True)}, "rows": {{\n{lines}\n}}}}\n')
