"""DDIM and its inverse written for the tests: all that a solver is."""

import torch

from fastdiff.samplers import Plan


def ddim(process, timesteps=None, *, clip=1.0, eta=0.0, invert=False):
    """x' = alpha' x0 + sqrt(sigma'^2 - std^2) (x - alpha x0) / sigma + std noise; inverted: to the next noisier one."""
    run = process if timesteps is None else process.respace(timesteps)
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    a, s = (torch.cat([end[None], table]).flip(0) for end, table in zip(ends, (run.alpha, run.sigma), strict=True))
    time, p_x, p_m = (table.flip(0) for table in (run.timestep_map, run.p_x, run.p_m))
    if invert:  # from the last point but one to the first, each with the network of where it is
        a, s, time, p_x, p_m = a[:-1].flip(0), s[:-1].flip(0), time.flip(0)[:-1], p_x.flip(0)[:-1], p_m.flip(0)[:-1]
    std = eta * (s[1:] / s[:-1]) * (1 - (a[:-1] / a[1:]) ** 2).clamp(min=0).sqrt()
    kept = (s[1:] ** 2 - std**2).sqrt() / s[:-1]
    bound = float("inf") if clip is None else clip
    return Plan(time, p_x=p_x, p_m=p_m, bound=bound, c_0=a[1:] - kept * a[:-1], c_x=kept, std=std)
