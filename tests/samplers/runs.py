"""A plan run row by row with noise and outputs that a test gives."""

import torch

from fastdiff import ops


def states(plan, model, x, noise=None):
    """x before each row, and after the last.

    model(x, time [B]) of the row's input, noise(row) of the rows that add any. The history starts as NaN, so that a
    slot read before it is written shows.
    """
    table, history = plan.table(dtype=x.dtype), torch.full((3, *x.shape), torch.nan, dtype=x.dtype)
    visited = [x]
    for row in range(len(plan)):
        output = model(plan["c_in"][row].to(x.dtype) * x, plan.time[row].expand(len(x))) if plan.call[row] else None
        drawn = noise(row) if plan["std"][row] != 0 else None
        x = ops.reverse_step(x, output, table, torch.tensor(row), history=history, noise=drawn)
        visited.append(x)
    return visited


def rows_of_noise(plan):
    """The rows that add noise."""
    return [row for row in range(len(plan)) if plan["std"][row] != 0]
