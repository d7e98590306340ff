"""Solvers that choose their steps as they go. They are no tables; `Sampler` runs one in place of a Plan.

Such a solver is an object with

    start               x_T = start * noise
    run(denoise, x, draw, progress=None) -> x

where x [B, C, *] is the state at t_max, float32 or float64, and is not written to; denoise(x, t) -> x0 [B, C, *], not
clipped, calls the network on a state at times t, [B] float64 of the process: it feeds process.c_in(t) * x and
process.label(t), and takes process.predict_x0(x, t, output), where process is the solver's attribute: the one that it
was given, in continuous time (`fastdiff.processes.interpolated.continuous`). draw(k) -> standard normals like x, the
same for the same k >= 0; where errors are per sample, a sample's noise must not depend on its batch either. progress,
if given, is called with the fraction of the way that the last sample has gone. run reads a device value once per
attempted step: whether all samples have arrived.
"""

import math
from typing import NamedTuple

import torch

from ..processes.continuous import precise
from ..processes.interpolated import continuous

_ARRIVED = 1e-5  # distance in lam at which a sample is done


class DPMAdaptive:
    """DPM-Solver-12 or -23 in lam = -ln(sigma / alpha): a step in two orders, whose difference sets the next step's h.

    With error = rms((low - high) / max(atol, rtol max(|low|, |before|))), in units of x / alpha, and e = 1 / error,
    e1 and e2 those of the two accepted steps before:

        factor = 1 + atan(e^b1 * e1^b2 * e2^b3 - 1)     accepted if at least accept_safety     h <- factor * h
        b1 = (p + i + d) / order, b2 = -(p + 2 d) / order, b3 = d / order

    Args:
        process: any with continuous time, or one that `fastdiff.processes.interpolated.continuous` gives it.
        timesteps: None, for the solver chooses its own.
        clip: bound of x0's absolute value, or None.
        order: 2 or 3, the calls per attempted step.
        rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety: as above.
        eta: share of ancestral noise, s_noise its factor.
        norms: "sample": every sample has its own error and steps, and does not depend on its batch; "batch": one error
            over all, as k-diffusion has.
        max_steps: attempted steps after which RuntimeError is raised, as an output that is not finite would have it.
        denoise: end with x = x0, one more call; else x is the state at t_min.

    Attributes: start, process; see this module for `run`. The default tolerances are k-diffusion's, which are coarse
    where noise levels span much: from 150 to 0.01 they make a deviation of 0.4 into 0.66 (24 calls), rtol = 0.005 and
    atol = 0.001 into 0.406 (48 calls).
    Source: Lu et al., "DPM-Solver", 2022, appendix C; the controller is k-diffusion's `sample_dpm_adaptive`'s.
    """

    def __init__(
        self,
        process,
        timesteps=None,
        *,
        clip=None,
        order=3,
        rtol=0.05,
        atol=0.0078,
        h_init=0.05,
        pcoeff=0.0,
        icoeff=1.0,
        dcoeff=0.0,
        accept_safety=0.81,
        eta=0.0,
        s_noise=1.0,
        norms="sample",
        max_steps=1000,
        denoise=False,
    ):
        if timesteps is not None:
            raise ValueError(f"timesteps must be None where the solver chooses its own, got {timesteps!r}")
        if order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {order!r}")
        if norms not in ("sample", "batch"):
            raise ValueError(f"norms must be sample or batch, got {norms!r}")
        for name, value in (("rtol", rtol), ("atol", atol), ("h_init", h_init), ("max_steps", max_steps)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.process, self.clip, self.order, self.denoise = continuous(process), clip, order, denoise
        self.rtol, self.atol, self.h_init, self.accept_safety = rtol, atol, h_init, accept_safety
        self.eta, self.s_noise, self.norms, self.max_steps = eta, s_noise, norms, max_steps
        rate = 1.5 if eta else order
        self.powers = (pcoeff + icoeff + dcoeff) / rate, -(pcoeff + 2 * dcoeff) / rate, dcoeff / rate
        self.start = self.process.nodes(1).start

    def run(self, denoise, x, draw, progress=None):
        first, last = self._ends(x)
        noise = (lambda attempt, *_: draw(attempt)) if self.eta else (lambda *_: None)
        for attempt in self.attempts(denoise, x, noise):
            x = attempt.x
            if progress is not None:
                progress(((attempt.lam.min() - first) / (last - first)).item())
        if not self.denoise:
            return x
        x0 = denoise(x, self.process.time_at(torch.exp(-last)).expand(len(x)))
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def attempts(self, denoise, x, noise):
        """Yields an `Attempt` for each, until all samples have arrived.

        noise(attempt, before, end, accepted) -> standard normals like x, or None without eta: of the step from lam =
        `before` to `end`, each [B], that the samples `accepted` take.
        """
        first, last = self._ends(x)
        eps = _Eps(self.process, denoise, self.clip, x)
        x = x / eps.alpha(first.expand(len(x)))
        controller = _Controller(self, x)
        lam, before = first.repeat(len(x)), x
        for attempt in range(self.max_steps):
            moving = lam < last - _ARRIVED
            if not moving.any():
                return
            # Samples that have arrived take a tiny step back, which is thrown away.
            end = torch.where(moving, torch.minimum(last, lam + controller.h), lam - _ARRIVED)
            target, std = _ancestral(lam, end, last, self.eta)
            low, high = (_orders_2 if self.order == 2 else _orders_3)(eps, x, lam, target)
            accepted, error = controller.accept(low, high, before)
            accepted &= moving
            drawn = noise(attempt, lam, end, accepted)
            if self.eta and drawn is not None:
                high = high + eps.like(std * self.s_noise) * drawn
            taken = eps.like(accepted)
            before, x = torch.where(taken, low, before), torch.where(taken, high, x)
            lam = torch.where(accepted, end, lam)
            yield Attempt(x * eps.alpha(lam), eps.first, lam, accepted, error, controller.h)
        if (lam < last - _ARRIVED).any():
            raise RuntimeError(f"the error stayed too large for {self.max_steps} steps; is the model's output finite?")

    def _ends(self, x):
        """lam at t_max and at t_min."""
        times = (precise(t, x.device) for t in (self.process.t_max, self.process.t_min))
        return [-self.process.noise_level(t).log() for t in times]


class Attempt(NamedTuple):
    """An attempted step of every sample; tensors are [B], float64, unless said."""

    x: torch.Tensor  # [B, C, *], the state after it, which is that before where it was not accepted
    x0: torch.Tensor  # [B, C, *], the estimate from the state before
    lam: torch.Tensor  # where x is
    accepted: torch.Tensor  # bool
    error: torch.Tensor  # in units of the tolerance
    h: torch.Tensor  # the next step's


class _Eps:
    """eps(u, lam) = (u - x0) / s of states u = x / alpha at lam, s = exp(-lam); eps.begin the first of a step."""

    def __init__(self, process, denoise, clip, x):
        self.process, self.denoise, self.clip = process, denoise, clip
        self.dtype, self.shape = x.dtype, (-1, *(1,) * (x.dim() - 1))
        self.first = None  # x0 where the step began

    def like(self, value):
        """[B] float64 to [B, 1, ...] in x's dtype; bools stay bools."""
        return (value if value.dtype is torch.bool else value.to(self.dtype)).reshape(self.shape)

    def alpha(self, lam):
        return self.like(self.process.alpha(self.process.time_at(torch.exp(-lam))))

    def x0(self, x, t):
        x0 = self.denoise(x, t)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def begin(self, u, lam):
        self.first, eps = self._at(u, lam)
        return eps

    def __call__(self, u, lam):
        return self._at(u, lam)[1]

    def _at(self, u, lam):
        t = self.process.time_at(torch.exp(-lam))
        x0 = self.x0(u * self.like(self.process.alpha(t)), t)
        return x0, (u - x0) / self.like(torch.exp(-lam))


def _orders_2(eps, u, lam, target):
    """(order 1, order 2) of the step, two calls."""
    h, s, e = target - lam, eps.like(torch.exp(-target)), eps.begin(u, lam)
    grown = s * eps.like(torch.expm1(h))
    low = u - grown * e
    middle = lam + h / 2
    u1 = u - eps.like(torch.exp(-middle) * torch.expm1(h / 2)) * e
    return low, u - grown * eps(u1, middle)


def _orders_3(eps, u, lam, target):
    """(order 2 with its middle at a third, order 3), three calls that they share."""
    h, s, e = target - lam, eps.like(torch.exp(-target)), eps.begin(u, lam)
    lam1, lam2 = lam + h / 3, lam + 2 * h / 3
    u1 = u - eps.like(torch.exp(-lam1) * torch.expm1(h / 3)) * e
    d1 = eps(u1, lam1) - e
    whole = u - s * eps.like(torch.expm1(h)) * e
    low = whole - s * eps.like(1.5 * torch.expm1(h)) * d1
    s2, part = eps.like(torch.exp(-lam2)), torch.expm1(2 * h / 3)
    u2 = u - s2 * eps.like(part) * e - s2 * eps.like(2 * (part / (2 * h / 3) - 1)) * d1
    return low, whole - s * eps.like(1.5 * (torch.expm1(h) / h - 1)) * (eps(u2, lam2) - e)


def _ancestral(lam, end, last, eta):
    """(lam that the deterministic part goes to, deviation of the noise in units of x / alpha), each [B]."""
    if not eta:
        return end, torch.zeros_like(end)
    high, low = torch.exp(-2 * lam), torch.exp(-2 * end)
    up = torch.minimum(low, eta**2 * low * (high - low) / high)
    target = torch.minimum(last, -torch.log(low - up) / 2)
    return target, (low - torch.exp(-2 * target)).clamp(min=0).sqrt()


class _Controller:
    """The PID controller of h, [B]."""

    def __init__(self, solver, x):
        self.solver = solver
        self.h = precise(solver.h_init, x.device).repeat(len(x))
        self.errors = None  # e1, e2 of the docstring

    def accept(self, low, high, before):
        """(whether each sample keeps this step, its error), [B] each; changes h."""
        solver = self.solver
        scale = (solver.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=solver.atol)
        squared = precise((low - high) / scale).square().flatten(1).mean(1)
        error = (squared if solver.norms == "sample" else squared.mean().expand(len(low))).sqrt()
        e = 1 / (error + 1e-8)
        e1, e2 = (e, e) if self.errors is None else self.errors
        b1, b2, b3 = solver.powers
        factor = 1 + torch.atan(e**b1 * e1**b2 * e2**b3 - 1)
        accepted = factor >= solver.accept_safety
        self.errors = torch.where(accepted, e, e1), torch.where(accepted, e1, e2)
        self.h = self.h * factor
        return accepted, error
