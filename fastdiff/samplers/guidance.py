"""What steers a run towards its condition."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """m = gain * (m_uncond + w * (m_cond - m_uncond)): both halves in one call of the network, [uncond, cond].

    gain = rescale * std(m_cond) / std(m) + 1 - rescale, deviations over each sample's elements: it keeps a large w
    from overexposing. Rows with w = 1 run the conditional half alone.

    Args:
        w: guidance weight, a number or one for each row; 0 is unconditional, 1 conditional.
        uncond: the condition of the unconditional half, in the form of `condition`: a label or tensor, or a dict of the
            keywords that differ; None: the model's `null_condition`.
        rescale: in [0, 1].
        interval: (lo, hi): guidance only where lo <= time <= hi, the time that the network is fed; elsewhere w = 1.

    Source: Ho and Salimans, "Classifier-free diffusion guidance", 2022, equation 6, whose w is this less 1; Lin et al.,
    "Common diffusion noise schedules and sample steps are flawed", 2023, equations 14 to 16; Kynkaanniemi et al.,
    "Applying guidance in a limited interval improves sample and distribution quality", 2024.
    """

    w: Any
    uncond: Any = None
    rescale: float = 0.0
    interval: tuple | None = None

    def __post_init__(self):
        try:
            w = torch.as_tensor(self.w, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"w must be a number, or one for each row, got {self.w!r}") from None
        if not w.isfinite().all():
            raise ValueError(f"w must be finite, got {self.w!r}")
        if not isinstance(self.rescale, Real) or not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale!r}")
        if self.interval is not None and not _is_interval(self.interval):
            raise ValueError(f"interval must be (lo, hi) with lo at most hi, got {self.interval!r}")

    def plan(self, plan, levels):
        """The plan with this guidance in its column w."""
        return plan.replace(w=self.at(plan.time, plan.replace(w=self.w)["w"]))

    @property
    def each(self):
        """Whether there is a weight for each row."""
        return isinstance(self.w, (list, tuple)) or getattr(self.w, "ndim", 0) > 0

    def since(self, row):
        """The same for the rows from this one on."""
        return replace(self, w=self.w[row:]) if self.each else self

    def at(self, time, w=None):
        """The weights [S or B] at these times: w inside the interval, 1 outside."""
        lo, hi = self.interval or (-math.inf, math.inf)
        w = torch.full_like(time, self.w, dtype=torch.float32) if w is None else w
        return torch.where((time >= lo) & (time <= hi), w, 1.0)

    def combine(self, model_output, channels, w, gain=None):
        """The halves as one output [B, C or 2C, *], the variance being the conditional's; w [1] or [B, 1, ...]."""
        uncond, cond = model_output.float().chunk(2)
        mean = uncond[:, :channels] + w * (cond[:, :channels] - uncond[:, :channels])
        if gain is not None:
            mean = mean * gain.view(-1, *(1,) * (mean.dim() - 1))
        return torch.cat([mean, cond[:, channels:]], 1)

    def gain(self, model_output, channels, w):
        """[B] float32, or None without rescale."""
        if self.rescale == 0:
            return None
        uncond, cond = (half[:, :channels].float() for half in model_output.chunk(2))
        wanted, found = (m.flatten(1).std(1) for m in (cond, uncond + w * (cond - uncond)))
        return self.rescale * torch.where(found > 0, wanted / found, 1) + (1 - self.rescale)


@dataclass(frozen=True, eq=False)
class Classifier:
    """Steps along g = scale * grad_x log p(condition | x), which a classifier of noisy images gives.

        form "mean":  x' = x' + variance * g            the noise of the row, learned variances included
        form "score": x0 = x0 + sigma^2 / alpha * g     after the clip; what the row keeps of the raw output follows

    "mean" is for ancestral sampling and does nothing in a row without noise; "score" suits every solver that takes its
    steps in x0, deterministic ones as well.

    Args:
        gradient: gradient(x, t, condition) or gradient(x, t, **condition), called as the network is and on its input;
            returns grad_x log p, like x. See `gradient_of`.
        scale: a number.
        form: "mean" or "score".

    Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021, algorithms 1 and 2.
    """

    gradient: Callable
    scale: float = 1.0
    form: str = "score"

    def __post_init__(self):
        if not callable(self.gradient):
            raise TypeError(f"gradient must be callable, got {type(self.gradient).__name__}")
        if self.form not in ("mean", "score"):
            raise ValueError(f"form must be mean or score, got {self.form!r}")
        if not isinstance(self.scale, Real) or not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale!r}")

    def plan(self, plan, levels):
        """The plan with columns g_0, g_x and g_v; levels: a function of the plan, as `fastdiff.samplers.levels`."""
        called = plan["c_in"] * torch.tensor(plan.call, device="cpu") * self.scale  # g is of the network's input
        if self.form == "mean":
            learned = (plan["l_0"] != 0) | (plan["l_1"] != 0)
            noise = torch.where(learned, 0.0, plan["std"] ** 2)
            return plan.replace(g_x=called * noise, g_v=torch.where(learned, called, 0.0))
        if (plan["q_m"] != 0).any():
            raise ValueError("guidance must be of form mean, or none, where history keeps the raw output, got 'score'")
        alpha, sigma = (level[:-1] for level in levels(plan))
        g_0 = called * sigma**2 / alpha
        per_m = torch.where(plan["p_m"] == 0, 0.0, g_0 / torch.where(plan["p_m"] == 0, 1.0, plan["p_m"]))
        return plan.replace(g_0=g_0, g_x=plan["c_m"] * per_m)


def _is_interval(value):
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(end, Real) for end in value):
        return False
    return value[0] <= value[1]


def gradient_of(classifier):
    """gradient(x, t, y) = grad_x log softmax(classifier(x, t))[y], for `Classifier`; y int64 [B]."""

    def gradient(x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            chosen = classifier(x, t).log_softmax(1).gather(1, y[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]

    return gradient
