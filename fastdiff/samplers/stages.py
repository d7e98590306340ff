"""Plans of multi-stage solvers, written row by row."""

import torch

from .plan import Plan


def stage_plan(process, rows, *, clip):
    """A Plan of rows (t, columns): network calls at times t of a continuous process, columns by name; others 0.

    Where a row ends the run at its estimate, columns are {"c_0": 1.0}.
    """
    t = torch.tensor([time for time, _ in rows], dtype=torch.float64, device="cpu")
    names = sorted({name for _, columns in rows for name in columns})
    defaults = {"write": -1.0}
    columns = {name: [float(row.get(name, defaults.get(name, 0.0))) for _, row in rows] for name in names}
    p_x, p_m = process.to_x0(t)
    return Plan(
        process.label(t),
        p_x=p_x,
        p_m=p_m,
        c_in=process.c_in(t),
        bound=float("inf") if clip is None else clip,
        start=process.nodes(t[:1]).start,
        **columns,
    )
