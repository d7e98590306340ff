"""A plan run row by row, with noise that is given."""

import torch

from fastdiff import ops
from fastdiff.ops import rng


def run(plan, model, x, noise):
    """x after the plan, in x's dtype; model(x, time [B]); noise(row) like x, asked for where the row adds any."""
    B, table = len(x), plan.table(dtype=x.dtype)
    history = x.new_zeros(3, *x.shape) if plan.multistep else None
    for row, time in enumerate(plan.time):
        output = model(x, time.expand(B))
        z = noise(row).to(x.dtype) if plan["std"][row] != 0 else None
        rows, place = table, torch.tensor(row)
        if plan.adjusted[row]:
            rows, place = table[row].repeat(B, 1), torch.arange(B)
            plan.adjust(rows, row, x, output, z)
        x = ops.reverse_step(x, output, rows, place, history=history, noise=z)
    return x


def sample(plan, model, shape, seed=0):
    """Samples as Sampler draws them: noise of the counter RNG by row."""
    ids = torch.arange(shape[0])
    x_T = plan.start * ops.normal(shape, rng.make_rng(seed), ids, stream=rng.INITIAL)
    return run(plan, model, x_T, lambda row: ops.normal(shape, rng.make_rng(seed, row), ids, stream=rng.STEP))
