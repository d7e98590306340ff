"""A plan through given noise levels, on a denoiser, with noise in k-diffusion's order."""

import torch
from tqdm.auto import tqdm

from .. import ops
from ..processes import SigmaProcess


def run(solver, model, x, sigmas, extra_args, callback, disable, options, noise=None, noise_sampler=None):
    """x after the solver's plan; noise: None, or when it is drawn: "churn", "step", "path" (see `_Noise`)."""
    plan = solver(SigmaProcess("x0"), sigmas, clip=None, **options)
    return follow(plan, _starts(plan), model, x, sigmas, extra_args, callback, disable, noise, noise_sampler)


@torch.no_grad()
def follow(plan, starts, model, x, sigmas, extra_args, callback, disable, noise, noise_sampler):
    """x after a plan of steps between sigmas, which begin at the rows that `starts` marks; all else as for `run`."""
    table, history = plan.table(x.device, _precision(x)), x.new_zeros(3, *x.shape) if plan.multistep else None
    times, draw, step = plan.time.to(x.device, x.dtype), _Noise(noise, noise_sampler, plan, sigmas), -1
    bar = tqdm(total=len(sigmas) - 1, disable=disable)
    for row in range(len(plan)):
        if starts[row]:
            step += 1
            draw.before(step, x)
        output, first = None, starts[row] or not plan.call[row - 1]
        if plan.call[row]:
            output = model(x, times[row].expand(len(x)), **(extra_args or {}))
            if first and callback is not None:
                level = {"sigma": sigmas[step], "sigma_hat": times[row]}
                callback({"x": x, "i": step, **level, "denoised": output})
        z = draw.after(row, step, x, row + 1 == len(plan) or starts[row + 1])
        x = ops.reverse_step(x, output, table, torch.tensor(row, device=x.device), history=history, noise=z)
        if row + 1 == len(plan) or starts[row + 1]:
            bar.update()
    bar.close()
    return x


def _starts(plan):
    """Whether each row begins a step: not after churn, and not a second stage, which reads what the first kept."""
    two_stages = (plan["write"] <= 0).all() and (plan["c_2"] == 0).all()
    flags = [True]
    for row in range(1, len(plan)):
        second = two_stages and plan["write"][row - 1] == 0 and plan["write"][row] == -1 and plan["c_1"][row] != 0
        flags.append(bool(plan.call[row - 1] and not second))
    return flags


def _precision(x):
    return torch.float64 if x.dtype is torch.float64 else torch.float32


class _Noise:
    """Draws as k-diffusion makes them.

    "churn": before every step; "step": at a step's end, unless that is clean data; "path": at the middle and at the
    end, both from the step's beginning, so that they share a Brownian path.
    """

    def __init__(self, kind, sampler, plan, sigmas):
        self.kind, self.sampler, self.plan, self.sigmas = kind, sampler, plan, sigmas
        self.drawn = self.middle = None

    def before(self, step, x):
        self.drawn = torch.randn_like(x) if self.kind == "churn" else None

    def after(self, row, step, x, last):
        """The noise that this row is given."""
        if self.kind in (None, "churn"):
            return self.drawn
        following = self.sigmas[step + 1]
        if following == 0 or (self.kind == "step" and not last):
            return None
        if self.kind == "step" or self.sampler is None:
            return self._draw(x, self.sigmas[step], following)
        return self._of_path(row, step, x, last)

    def _draw(self, x, level, following):
        return torch.randn_like(x) if self.sampler is None else self.sampler(level, following).to(x.dtype)

    def _of_path(self, row, step, x, last):
        """Of the sampler's two, which overlap, what the plan's rows take: two that do not."""
        level, following = self.sigmas[step], self.sigmas[step + 1]
        if not last:
            self.middle = self._draw(x, level, self.plan.time[row + 1].to(level))
            return self.middle
        rho = ((level - self.plan.time[row]) / (level - following)).sqrt().item()
        return (self._draw(x, level, following) - rho * self.middle) / (1 - rho * rho) ** 0.5
