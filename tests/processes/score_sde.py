"""Recorded numbers of score_sde_pytorch (commit cb1f359), and the exact score of its Gaussian data."""

import torch

from fastdiff.processes.sde import VESDE, VPSDE, SubVPSDE
from tests.processes.golden import load

KINDS = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}


def recorded():
    return load("score_sde")


def scaled(arrays, kind):
    """The recorded state x, as it was used."""
    return arrays["x"] * (0.3 * 50 if kind == "ve" else 1)


def exact_x0(arrays, process):
    """E[x_0 | x_t] of N(mean, std^2 I) data: denoise(x, t), t [B]."""
    mean, variance = arrays["gaussian.mean"].view(1, -1, 1, 1), arrays["gaussian.std"] ** 2

    def denoise(x, t):
        alpha, sigma = (scale(t).to(x.dtype).view(-1, 1, 1, 1) for scale in (process.alpha, process.sigma))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


def exact_model(arrays, process):
    """model(x, label) that returns the process' prediction exactly."""
    denoise = exact_x0(arrays, process)

    def model(x, label):
        t = time_of(process, label.double())
        x0 = denoise(x, t)
        eps = (x - shaped(process.alpha(t), x) * x0) / shaped(process.sigma(t), x)
        return process.target(x0, t, eps)

    return model


def time_of(process, label):
    return process.time_at(label) if isinstance(process, VESDE) else label / 999


def shaped(value, like):
    return value.to(like.dtype).view(-1, 1, 1, 1)


def run(plan, model, x, noise):
    """The plan as Sampler runs it, in x's dtype: row i takes noise[i]."""
    from fastdiff import ops

    table = plan.table(dtype=x.dtype)
    for row, time in enumerate(plan.time):
        output, z = model(x, time.expand(len(x))), noise[row].to(x.dtype)
        rows, place = table, torch.tensor(row)
        if plan.adjusted[row]:
            rows, place = table[row].repeat(len(x), 1), torch.arange(len(x))
            plan.adjust(rows, row, x, output, z)
        x = ops.reverse_step(x, output, rows, place, noise=z)
    return x
