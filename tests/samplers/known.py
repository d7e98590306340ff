"""Data whose exact denoiser is known, and what a plan makes of it."""

import numpy as np
import torch

from fastdiff.ops.rows import NAMES
from fastdiff.processes import VESDE, InterpolatedProcess, NCSNProcess


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def spread(value, x):
    return double(value).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))


class Mixture:
    """Data of independent elements, each sum_k weight_k N(mean_k, std_k^2); a mean or std may be per channel, [C]."""

    def __init__(self, weight, mean, std):
        self.components = list(zip(weight, mean, std, strict=True))

    def denoise(self, x, alpha, sigma):
        """E[x_0 | x = alpha x_0 + sigma eps]; alpha, sigma [B]."""
        alpha, sigma = spread(alpha, x), spread(sigma, x)
        logs, means = [], []
        for weight, mean, std in self.components:
            mean, std = (double(value).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 2)) for value in (mean, std))
            variance = alpha**2 * std**2 + sigma**2
            logs.append(double(weight).log() - (variance.log() + (x - alpha * mean) ** 2 / variance) / 2)
            means.append(mean + alpha * std**2 / variance * (x - alpha * mean))
        return (torch.stack(logs).softmax(0) * torch.stack(means)).sum(0)

    def denoiser(self, process):
        """denoise(x, t), as adaptive solvers take it."""
        return lambda x, t: self.denoise(x, process.alpha(t), process.sigma(t))

    def model(self, process):
        """model(x, label) that returns the process' prediction, exact to the rounding of x's dtype."""

        def model(x, label):
            dtype, x = x.dtype, x.double()  # float32 would cancel where sigma is small
            alpha, sigma = (spread(scale, x) for scale in scales(process, label))
            x0 = self.denoise(x, alpha, sigma)
            eps = (x - alpha * x0) / sigma
            known = {"eps": eps, "score": -eps / sigma, "x0": x0, "v": alpha * eps - sigma * x0}
            return known[process.prediction].to(dtype)

        return model


class Gaussian(Mixture):
    """Data N(mean, std^2)."""

    def __init__(self, mean, std):
        super().__init__([1.0], [mean], [std])


def scales(process, label):
    """alpha and sigma where the network is fed this label, float64."""
    if isinstance(process, NCSNProcess):
        return process.alpha[label], process.sigma[label]
    label = label.double()
    if isinstance(process, InterpolatedProcess):
        below = label.floor().long().clamp(max=process.num_timesteps - 2)
        t = torch.lerp(process.levels[below], process.levels[below + 1], label - below)
    else:
        t = process.time_at(label) if isinstance(process, VESDE) else label / 999
    return process.alpha(t), process.sigma(t)


def moments(plan, process, mean, std, rows=None, initial=None, noise=1.0):
    """(mean, variance) of the state after the plan on N(mean, std^2) data, propagated exactly through its rows.

    rows: of them, None: all. initial: (mean, variance) before the first row; None: what the plan starts with. noise:
    its deviation. An adjusted row's norms are those of infinitely many elements.
    """
    mu, P = np.zeros(4), np.zeros((4, 4))  # of x, h0, h1, h2
    mu[0], P[0, 0] = initial or (0, plan.start**2)
    alpha, sigma = (scale.tolist() for scale in scales(process, plan.time))
    for row, values in enumerate(plan.rows[:rows].tolist()):
        c = dict(zip(NAMES, values, strict=False))
        gain = alpha[row] * std**2 / (alpha[row] ** 2 * std**2 + sigma[row] ** 2)
        rest = mean * (1 - gain * alpha[row])  # x0 = gain * x + rest
        of_x, of_1 = (gain - c["p_x"]) / c["p_m"], rest / c["p_m"]  # m = of_x * x + of_1
        slope, offset = c["c_x"] + c["c_0"] * gain + c["c_m"] * of_x, c["c_0"] * rest + c["c_m"] * of_1
        if plan.adjusted[row]:
            c["std"] /= (slope**2 * P[0, 0] + (slope * mu[0] + offset) ** 2) ** 0.5
            step = c["std"] ** 2 / 2
            slope, offset = 1 + step * slope, step * offset
        A, b = np.eye(4), np.zeros(4)
        A[0], b[0] = (slope, c["c_1"], c["c_2"], c["c_3"]), offset
        if c["write"] >= 0:
            slot = 1 + int(c["write"])
            A[slot], b[slot] = (c["q_x"] + c["q_0"] * gain, 0, 0, 0), c["q_0"] * rest
        mu, P = A @ mu + b, A @ P @ A.T
        P[0, 0] += (c["std"] * noise) ** 2
    return mu[0], P[0, 0]


def assert_moments(samples, mean, variance, errors=3):
    """Within that many standard errors."""
    n = samples.numel()
    assert abs(samples.double().mean().item() - mean) < errors * (variance / n) ** 0.5
    assert abs(samples.double().var().item() / variance - 1) < errors * (2 / n) ** 0.5
