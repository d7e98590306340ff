"""Images of which a part is known."""

import numbers
from dataclasses import dataclass
from typing import Any

import torch

from ..ops.rows import NAMES
from .plan import Plan


@dataclass(frozen=True, eq=False)
class Inpaint:
    """x = mask * x + (1 - mask) * (alpha * known + sigma * noise) after every row: the known part at its noise level.

    With jumps (RePaint), every jump_length steps the run goes back up by as many, jumps - 1 times in the same place,
    and down again, which brings the two parts in tune. Going up is noising with r = alpha' / alpha,

        x = r * x + sqrt(sigma'^2 - (r sigma)^2) * noise

    What history keeps is the x0 before the mask. The last row leaves the known part exact.

    Args:
        known: [n, C, H, W], or [1, C, H, W] for all: uint8, scaled to [-1, 1], or floating.
        mask: [n or 1, C or 1, H, W], bool or floating: 1 generates, 0 keeps `known`.
        jump_length: steps of a jump.
        jumps: how often each stretch is run; 1: no jump, plain replacement.

    Source: Lugmayr et al., "RePaint: inpainting using denoising diffusion probabilistic models", 2022, algorithm 1 and
    appendix B; the plain replacement is of Song et al., "Score-based generative modeling ...", 2021, appendix I.2.
    """

    known: Any
    mask: Any
    jump_length: int = 10
    jumps: int = 1

    def __post_init__(self):
        for name in ("known", "mask"):
            if not isinstance(getattr(self, name), torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(getattr(self, name)).__name__}")
        for name in ("jump_length", "jumps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")

    def plan(self, plan, levels):
        """The plan with the known part's columns k_0 and k_n and, with jumps, the rows that go up.

        levels: a function of the plan, as `fastdiff.samplers.levels`.
        """
        alpha, sigma = levels(plan)
        if self.jumps == 1:
            return plan.replace(k_0=alpha[1:], k_n=sigma[1:])
        if plan.multistep or any(plan.adjusted) or not all(plan.call):
            raise ValueError(f"jumps must be 1 for a solver with history or of several stages, got {self.jumps}")
        S = len(plan)
        points = jump_schedule(S, self.jump_length, self.jumps)
        before, after = torch.tensor(points[:-1], device="cpu"), torch.tensor(points[1:], device="cpu")
        up = after > before
        row = S - 1 - before  # the one that leads down from this point
        r = alpha[S - 1 - after] / alpha[row]
        columns = {name: torch.where(up, _BLANK.get(name, 0.0), plan[name][row]) for name in NAMES}
        columns["c_x"] = torch.where(up, r, columns["c_x"])
        noise = (sigma[S - 1 - after] ** 2 - (r * sigma[row]) ** 2).clamp(min=0).sqrt()
        columns["std"] = torch.where(up, noise, columns["std"])
        columns |= {"k_0": alpha[S - 1 - after], "k_n": sigma[S - 1 - after]}
        return Plan(plan.time[row], call=(~up).tolist(), start=plan.start, **columns)


def inpaint_of(given):
    """`Inpaint` of one, or of (known, mask); None of None. A tensor, which could be taken apart as well, is neither."""
    if given is None or isinstance(given, Inpaint):
        return given
    if not isinstance(given, tuple | list):
        raise TypeError(f"inpaint must be (known, mask) or Inpaint, got {type(given).__name__}")
    return Inpaint(*given)


_BLANK = {"w": 1.0, "bound": float("inf"), "write": -1.0, "c_in": 1.0}


def jump_schedule(steps, jump_length, jumps):
    """The points that a run visits: from steps - 1, the noisiest, one at a time down to -1, clean, with jumps up.

    At each point j * jump_length below steps - jump_length the run first goes up by jump_length, jumps - 1 times.
    Source: Lugmayr et al. 2022, appendix B.
    """
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), jumps - 1)
    point, points = steps - 1, [steps - 1]
    while point >= 0:
        point -= 1
        points.append(point)
        while left.get(point, 0) > 0:
            left[point] -= 1
            points.extend(range(point + 1, point + jump_length + 1))
            point += jump_length
    return points
