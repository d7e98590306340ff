"""DPM-Solver of orders 1 to 3 with a fixed number of network calls."""

import math
import numbers

from ..processes.interpolated import continuous
from .stages import stage_plan


def dpm_fast(process, timesteps=None, *, clip=None, eta=0.0, s_noise=1.0, denoise=False):
    """Steps evenly spaced in l = -ln(sigma / alpha), of order 3 but for the last ones, so that n calls are made in all.

    n = 3 k + r calls make k steps of order 3 and one of order r; where r = 0, k - 1 of order 3, one of order 2 and one
    of order 1. A step of order 1 is x' = x - s' expm1(h) eps, in units of x / alpha, s = sigma / alpha, h = l' - l.

    Args:
        process: any with continuous time, or one that `fastdiff.processes.interpolated.continuous` gives it.
        timesteps: n, the number of network calls; None: 30.
        clip: bound of x0's absolute value, or None.
        eta: share of the ancestral noise; 0: the ODE.
        s_noise: factor of the noise.
        denoise: end with x = x0, one more call; else the run stops at t_min, as k-diffusion's does.

    Returns a Plan of one row per network call.
    Source: Lu et al., "DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps",
    2022, algorithms 1 and 2 and section 3.4, in the form of k-diffusion's `sample_dpm_fast`, whence eta.
    """
    calls = 30 if timesteps is None else timesteps
    if not isinstance(calls, numbers.Integral) or isinstance(calls, bool) or calls < 1:
        raise ValueError(f"timesteps must be the number of network calls, at least 1, got {timesteps!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    process = continuous(process)
    first, last = (-process.noise_level(t).log().item() for t in (process.t_max, process.t_min))
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    rows = []
    for step, order in enumerate(orders):
        begin, end = (first + (last - first) * place / len(orders) for place in (step, step + 1))
        target, noise = _ancestral(begin, end, last, eta)
        points = _Points(process, begin, target, end)
        rows += ORDERS[order](points)
        rows[-1][1]["std"] = points.alpha(1) * noise * s_noise
    t_last = process.time_at(math.exp(-last)).item()
    return stage_plan(process, [*rows, (t_last, {"c_0": 1.0})] if denoise else rows, clip=clip)


def _ancestral(begin, end, last, eta):
    """(l that the deterministic part goes to, deviation of the noise in units of x / alpha).

    The noise is eta times the posterior's, and takes its variance out of the part that the ODE leads to.
    """
    if eta == 0:
        return end, 0.0
    high, low = math.exp(-2 * begin), math.exp(-2 * end)
    up = min(low, eta**2 * low * (high - low) / high)
    target = min(last, -math.log(low - up) / 2) if up < low else last
    return target, math.sqrt(max(low - math.exp(-2 * target), 0))


class _Points:
    """A step from `begin` to `target` in l; its state ends at the alpha of `end`."""

    def __init__(self, process, begin, target, end):
        self.process, self.begin, self.h, self.end = process, begin, target - begin, end

    def s(self, r):
        """sigma / alpha at begin + r h."""
        return math.exp(-(self.begin + r * self.h))

    def t(self, r):
        return self.process.time_at(self.s(r)).item()

    def alpha(self, r):
        return self.process.alpha(self.t(r) if r < 1 else self.process.time_at(math.exp(-self.end))).item()

    def row(self, r, to, x=0.0, eps=0.0, push=None, **history):
        """The row at r that goes to `to`: x * state + eps * noise + history, in units of x / alpha but for states."""

        def columns(x, eps, of_x, of_0):
            return {of_x: (x + eps / self.s(r)) / self.alpha(r), of_0: -eps / self.s(r)}

        scale = self.alpha(to)
        row = {name: scale * value for name, value in columns(x, eps, "c_x", "c_0").items()}
        row |= {name: scale * value for name, value in history.items()}
        if push is not None:
            slot, x, eps = push
            row |= {"write": slot} | columns(x, eps, "q_x", "q_0")
        return self.t(r), row


def _first(p):
    return [p.row(0, 1, x=1, eps=-p.s(1) * math.expm1(p.h))]


def _second(p, r1=1 / 2):
    """h0 = x - (whole - part) eps; x' = h0 - part eps_1."""
    whole = p.s(1) * math.expm1(p.h)
    part = whole / (2 * r1)
    return [
        p.row(0, r1, x=1, eps=-p.s(r1) * math.expm1(r1 * p.h), push=(0, 1, part - whole)),
        p.row(r1, 1, eps=-part, c_1=1),
    ]


def _third(p, r1=1 / 3, r2=2 / 3):
    """u1 = x - c1 eps, u2 = h0 - c2 eps_1, x' = x - c eps - c3 eps_2, whose x - c eps lies between u1 (h1) and h0."""
    h = p.h
    c1 = p.s(r1) * math.expm1(r1 * h)
    c2 = p.s(r2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
    c3 = p.s(1) / r2 * (math.expm1(h) / h - 1)
    base = p.s(r2) * math.expm1(r2 * h) - c2
    part = (p.s(1) * math.expm1(h) - c3 - base) / (c1 - base)
    return [
        p.row(0, r1, x=1, eps=-c1, push=(0, 1, -base)),
        p.row(r1, r2, eps=-c2, push=(1, 1, 0), c_1=1),
        p.row(r2, 1, eps=-c3, c_1=1 - part, c_2=part),
    ]


ORDERS = {1: _first, 2: _second, 3: _third}
