"""Data N(MEAN, DEVIATION^2): exact predictions are linear in x, and so is every plan without a clip."""

import numpy as np
import torch

from fastdiff.ops.rows import COLUMNS, NAMES
from fastdiff.processes import GaussianProcess
from fastdiff.samplers import Plan

MEAN, DEVIATION = 0.3, 0.5


def line(process):
    """times -> (A, B) of the exact network A * (its input) + B, of a SigmaProcess or of discrete eps; float64 [S]."""
    return _discrete(process) if isinstance(process, GaussianProcess) else _of_sigma(process)


def _of_sigma(process):
    def coefficients(times):
        sigma = (4 * times).exp() if process.time == "log" else times
        p_x, p_m, c_in = scalings(process, sigma)
        share = DEVIATION**2 / (DEVIATION**2 + sigma**2)  # E[x_0 | x] = MEAN + share * (x - MEAN)
        return (share - p_x) / (p_m * c_in), (1 - share) * MEAN / p_m

    return coefficients


def scalings(process, sigma):
    """(p_x, p_m, c_in) at each noise level, in any order."""
    if process.prediction == "x0":
        return torch.zeros_like(sigma), torch.ones_like(sigma), torch.ones_like(sigma)
    norm = (sigma**2 + process.sigma_data**2).sqrt()
    return process.sigma_data**2 / norm**2, sigma * process.sigma_data / norm, 1 / norm


def _discrete(process):
    table = process.noise_level.log()

    def coefficients(times):
        low = times.floor().clamp(max=len(table) - 2).long()
        level = (table[low] + (times - low) * (table[low + 1] - table[low])).exp()
        alpha = (1 + level**2).rsqrt()
        sigma = level * alpha
        slope = sigma / (alpha**2 * DEVIATION**2 + sigma**2)
        return slope, -slope * alpha * MEAN

    return coefficients


def network(process):
    """The exact network as a float32 model."""
    exact = line(process)

    def model(x, t):
        slope, offset = exact(t[0].double())
        return slope.float() * x + offset.float()

    return model


def propagated(plan, exact, mean, variance, history=None):
    """(mean, variance) of x after the plan, by the exact linear map of each row; history: the three slots' means."""
    state, covariance = np.array([mean, *(history or [0.0] * 3)]), np.zeros((4, 4))
    covariance[0, 0] = variance
    for (matrix, offset), std in zip(row_maps(plan, exact), plan["std"].tolist(), strict=True):
        state, covariance = matrix @ state + offset, matrix @ covariance @ matrix.T
        covariance[0, 0] += std**2
    return state[0], covariance[0, 0]


def row_maps(plan, exact):
    """(matrix [4, 4], offset [4]) of each row on (x, h0, h1, h2)."""
    called = torch.tensor(plan.call)
    times = torch.where(called, plan.time.double(), plan.time.double()[called][0])
    networks = zip(*(torch.where(called, value, 0.0).tolist() for value in exact(times)), strict=True)
    for values, (slope, offset) in zip(plan.rows.tolist(), networks, strict=True):
        c = dict(zip(NAMES, values, strict=False))
        x, m = np.array([1.0, 0.0]), np.array([slope * c["c_in"], offset])  # what multiplies x, and what is constant
        x0 = c["p_x"] * x + c["p_m"] * m
        result, kept = (c[k + "x"] * x + c[k + "0"] * x0 + c[k + "m"] * m for k in ("c_", "q_"))
        matrix, constants = np.eye(4), np.zeros(4)
        matrix[0], constants[0] = [result[0], c["c_1"], c["c_2"], c["c_3"]], result[1]
        if c["write"] >= 0:
            slot = 1 + int(c["write"])
            matrix[slot], constants[slot] = [kept[0], 0, 0, 0], kept[1]
        yield matrix, constants


def part(plan, start):
    """The rows of a plan from `start` on."""
    columns = {name: plan[name][start:] for name in COLUMNS}
    return Plan(plan.time[start:], call=plan.call[start:], **columns)
