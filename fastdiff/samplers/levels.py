"""How much of the clean image and of noise the state of a run holds."""

import torch

from ..processes.nodes import Nodes


def levels(process, plan, timesteps=None):
    """(alpha, sigma), each [S + 1] float64: x = alpha * x_0 + sigma * eps before each row and after the last.

    The end is clean data, 1 and 0, or that of the Nodes given as timesteps.
    The network's input c_in * x is what the process feeds it at the row's time; a row that feeds none has x as the
    process does. A fractional timestep of a `GaussianProcess` lies between two whole ones, its log(alpha^2 / sigma^2)
    interpolated linearly; of other processes, the times must be among their `nodes(timesteps)`. Before a row of noise
    it is the level that the noise leads to, but before the first: that may lead above every timestep.
    """
    if hasattr(process, "snr") and hasattr(process, "timestep_map"):
        alpha, sigma, c_in = *_between_timesteps(process, plan.time.double()), 1.0
    else:
        alpha, sigma, c_in = _of_nodes(process, plan.time.double(), timesteps)
    scale = torch.where(torch.tensor(plan.call, device="cpu"), c_in / plan["c_in"], 1.0)
    clean = torch.ones(1, dtype=torch.float64, device="cpu"), torch.zeros(1, dtype=torch.float64, device="cpu")
    ends = (timesteps.alpha[-1:], timesteps.sigma[-1:]) if isinstance(timesteps, Nodes) else clean
    alpha, sigma = (torch.cat([scale * level, end]) for level, end in zip((alpha, sigma), ends, strict=True))
    if len(plan) > 1 and not plan.call[0] and plan["c_x"][0] > 0 and hasattr(process, "nodes"):
        first, factor = _nodes(process, timesteps), plan["c_x"][0]
        alpha[0], sigma[0] = first.alpha[0], first.sigma[0]
        alpha[1], sigma[1] = factor * alpha[0], torch.hypot(factor * sigma[0], plan["std"][0])
    return alpha, sigma


def _between_timesteps(process, time):
    known = process.timestep_map.double()
    after = torch.searchsorted(known, time).clamp(0, len(known) - 1)
    before = torch.where(known[after] == time, after, (after - 1).clamp(min=0))
    gap = torch.where(after == before, 1, known[after] - known[before])
    level = torch.lerp(process.logsnr[before], process.logsnr[after], ((time - known[before]) / gap).clamp(0, 1))
    exact = before == after
    alpha = torch.where(exact, process.alpha[after], torch.sigmoid(level).sqrt())
    return alpha, torch.where(exact, process.sigma[after], torch.sigmoid(-level).sqrt())


def _of_nodes(process, time, timesteps):
    nodes = _nodes(process, timesteps)
    found = nodes.time.double()[None] == time[:, None]  # [S, nodes]
    if not found.any(1).all():
        missing = time[~found.any(1)][0].item()
        raise ValueError(f"solver must keep to the process' nodes here, got time {missing:g} between them")
    at = found.double().argmax(1)
    return nodes.alpha[at], nodes.sigma[at], nodes.c_in[at]


def _nodes(process, timesteps):
    if isinstance(timesteps, Nodes):
        return timesteps
    if not hasattr(process, "nodes"):
        raise TypeError(f"process must have nodes, whose levels are known, got {type(process).__name__}")
    return process.nodes(timesteps)


def remaining(process, time, timesteps=None):
    """(row, left): the first of `time` [S] that is a point of the process, and what a solver takes as timesteps for a
    run through those that are; (S, None) where none is."""
    times = time.double().tolist()
    nodes = None if hasattr(process, "timestep_map") else _nodes(process, timesteps)
    points = (process.timestep_map if nodes is None else nodes.time).double().tolist()
    known = {*points}
    row = next((row for row, at in enumerate(times) if at in known), len(times))
    if row == len(times):
        return row, None
    if nodes is None:
        return row, [t for t, point in enumerate(points) if point in times]
    first = points.index(times[row])
    return row, Nodes(*(column[first:] for column in nodes))
