"""What one call of a sampler asks for: how many samples of which shape, from where, under which conditions."""

import operator

import torch

from ..ops.rng import make_rng
from ..ops.rows import NAMES
from .conditions import Condition, per_sample, take
from .guidance import ClassifierFree
from .inpaint import inpaint_of
from .levels import remaining
from .plan import Plan


class Request:
    """The checked arguments of `Sampler.sample`; `begin` fills a run with some of the samples.

    Attributes: n, shape (C, H, W), ids (list of n ints), plan: the sampler's, from where this request starts and with
    the rows that inpainting adds.
    """

    def __init__(self, sampler, n, seed, sample_ids, condition, x, x_start, strength, inpaint):
        inpaint = inpaint_of(inpaint)
        for name, value in (("x", x), ("x_start", x_start)):
            if value is not None and not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        given = next((image for image in (x, x_start, inpaint and inpaint.known) if image is not None), None)
        self.shape, self.ids = shape_and_ids(sampler.model, n, sample_ids, given)
        self.n, self.seed = len(self.ids), seed
        make_rng(seed)  # refuses it before any work
        if x is not None and x_start is not None:
            raise ValueError("x must be None where x_start is given: a run starts from one of them")
        self.x, self.x_start = (self._image(name, value) for name, value in (("x", x), ("x_start", x_start)))
        self.known = None if inpaint is None else self._image("inpaint's known", inpaint.known)
        self.mask = None if inpaint is None else self._mask(inpaint.mask)
        self.condition = Condition(condition, self.n, self._uncond(sampler, condition))
        self.plan, self.start = sampler.plan, None
        if not isinstance(self.plan, Plan):
            for name, value in (("x_start", x_start), ("inpaint", inpaint)):
                if value is not None:
                    raise ValueError(f"{name} must be None for a solver that chooses its own steps")
        if x_start is not None:
            self.plan, self.start = from_strength(sampler, strength)
        elif strength != 1:
            raise ValueError(f"strength must be 1 without x_start, got {strength!r}")
        if inpaint is not None:
            self.plan = inpaint.plan(self.plan, sampler.levels)

    def begin(self, run, positions):
        """Fills the run with the samples at these positions, a list, the last of them repeated in what is left."""
        padded = [*positions, *(positions[-1:] * (run.B - len(positions)))]
        at = torch.tensor(padded, device="cpu")
        images = {
            name: take(value, at).to(run.device, torch.float32, non_blocking=True)
            for name in ("x", "x_start", "known", "mask")
            if (value := getattr(self, name)) is not None
        }
        condition = self.condition.rows(at, run.device, run.dtype)
        run.begin(self.seed, [self.ids[i] for i in padded], condition=condition, start=self.start, **images)

    def _uncond(self, sampler, condition):
        guidance = sampler.guidance
        if not isinstance(guidance, ClassifierFree) or not sampler.guided:
            return None
        uncond = getattr(sampler.model, "null_condition", None) if guidance.uncond is None else guidance.uncond
        if uncond is None:
            raise ValueError("guidance must be ClassifierFree(w, uncond=...) for a model without null_condition")
        if condition is None:
            raise ValueError("condition must be given where guidance is, got None")
        return uncond

    def _image(self, name, value):
        """[n or 1, C, H, W] of uint8, scaled to [-1, 1], or floats."""
        if value is None:
            return None
        value = per_sample(name, value, self.n)
        if value.shape[1:] != self.shape:
            raise ValueError(f"{name} must have samples of shape {list(self.shape)}, got {list(value.shape[1:])}")
        if value.dtype is torch.uint8:
            return value.float() / 127.5 - 1
        if not value.is_floating_point():
            raise TypeError(f"{name} must be uint8 or floating, got {value.dtype}")
        return value

    def _mask(self, mask):
        mask = per_sample("inpaint's mask", mask, self.n)
        C, *space = self.shape
        if mask.dim() != 2 + len(space) or mask.shape[1] not in (1, C) or list(mask.shape[2:]) != space:
            wanted = ", ".join(map(str, [f"1 or {C}", *space]))
            raise ValueError(f"inpaint's mask must have samples of shape [{wanted}], got {list(mask.shape[1:])}")
        if not (mask.dtype is torch.bool or mask.is_floating_point()):
            raise TypeError(f"inpaint's mask must be bool or floating, got {mask.dtype}")
        return mask


def from_strength(sampler, strength):
    """(plan, (alpha, sigma)): the last strength * S rows of the sampler's plan, and the level that they start at.

    A step of several stages is run whole or not at all. A solver whose rows need history from before is asked for a
    plan of the timesteps that are left.
    """
    if isinstance(strength, bool) or not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")
    plan, S = sampler.plan, len(sampler.plan)
    first = S - max(int(S * strength), 1)
    alone = [row for row in range(S) if stands_alone(plan, row)]
    whole = next((row for row in alone if row >= first), S)
    row, left = (whole, None) if whole == first else remaining(sampler.process, plan.time[first:], sampler.steps)
    if left is not None and first + row < whole and (whole == S or plan.time[first + row] != plan.time[whole]):
        plan = sampler.plan_of(left, first + row)
    else:
        plan = tail(plan, whole if whole < S else alone[-1])
    # Of the others the levels need not be known: stages lie between the points.
    begin = Plan(plan.time[:1], call=plan.call[:1], c_in=plan["c_in"][:1])
    alpha, sigma = (level[0].item() for level in sampler.levels(begin))
    return plan, (alpha, sigma)


def stands_alone(plan, first):
    """Whether the rows from here on read no history but their own."""
    written = set()
    for row in range(first, len(plan)):
        if any(plan[f"c_{slot + 1}"][row] != 0 and slot not in written for slot in range(3)):
            return False
        if plan["write"][row] >= 0:
            written.add(int(plan["write"][row]))
    return plan.call[first]


def tail(plan, first):
    """The rows from `first` on, as a plan of its own."""
    adjust = plan.adjust and (lambda rows, row, *rest: plan.adjust(rows, row + first, *rest))
    options = {"call": plan.call[first:], "adjust": adjust, "adjusted": plan.adjusted[first:], "start": plan.start}
    return Plan(plan.time[first:], **options, **{name: plan[name][first:] for name in NAMES})


def shape_and_ids(model, n, sample_ids, images=None):
    """((C, H, W), list of ids)."""
    shape = getattr(model, "sample_shape", None)
    if sample_ids is not None:
        sample_ids = _ids(sample_ids)
    if images is not None:
        shape = images.shape[1:]
        n = len(images) if n is None and sample_ids is None else n
    if n is None:
        if sample_ids is None:
            raise ValueError("n must be given where sample_ids is not, got None")
        n = len(sample_ids)
    elif hasattr(n, "__len__"):
        n, *shape = n
    if shape is None:
        raise ValueError(f"n must be a shape (n, C, H, W) for a model without sample_shape, got {n}")
    n, shape = count("n", n, 0), tuple(count("n's C, H, W", extent, 1) for extent in shape)
    if sample_ids is not None and len(sample_ids) != n:
        raise ValueError(f"sample_ids must hold n = {n} ids, got {len(sample_ids)}")
    return shape, list(range(n)) if sample_ids is None else sample_ids


def _ids(sample_ids):
    try:
        sample_ids = sample_ids.tolist() if hasattr(sample_ids, "tolist") else sample_ids
        sample_ids = [operator.index(i) for i in sample_ids]
    except TypeError:
        raise TypeError(f"sample_ids must be ints, got {sample_ids!r}") from None
    outside = [i for i in sample_ids if not 0 <= i < 2**32]
    if outside:
        raise ValueError(f"sample_ids must be in [0, 2**32), got {outside[0]}")
    return sample_ids


def count(name, value, least):
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    return number
