"""One batch in flight: its tensors on the device, and a row of the plan at a time."""

import functools
from typing import NamedTuple

import torch

from .. import ops
from ..ops.rows import COLUMNS, WIDTH
from . import network
from .conditions import arguments
from .guidance import Classifier, ClassifierFree
from .thresholding import DynamicThreshold


class Kind(NamedTuple):
    """What a row does besides its coefficients: rows of one kind are the same work on the device."""

    halves: int  # of the network's call: 0, none; 1; or 2, guided
    adjusted: bool


class Run:
    """Tensors of a batch [B, C, *] for a sampler's plan, made once and filled anew by `begin` for every batch.

    Nothing below allocates but the network and its outputs, reads a device value or copies from the host, so that a row
    can be captured in a CUDA graph: `row_on_device` is that, `row` the same for the host's loop.
    """

    def __init__(self, sampler, plan, shape, B, *, estimates=False):
        self.model, self.plan, self.shape, self.B = sampler.model, plan, shape, B
        self.device, self.dtype = network.locate(self.model, sampler.device)
        network.check_precision(sampler.precision, self.dtype)  # the model may have changed
        self.free = sampler.guidance if isinstance(sampler.guidance, ClassifierFree) else None
        self.classifier = sampler.guidance if isinstance(sampler.guidance, Classifier) else None
        self.threshold = sampler.clip if isinstance(sampler.clip, DynamicThreshold) else None
        learned = plan.learned or getattr(sampler.process, "variance", None) in ("learned", "learned_range")
        channels = shape[0] * (2 if learned else 1)
        self.feeds_back = bool(getattr(self.model, "self_condition", False))
        self.expected = {halves: (halves * B, channels, *shape[1:]) for halves in (1, 2)}  # of the network's output
        self.kinds = _kinds(plan, self.free)
        rescales = self.free is not None and self.free.rescale > 0
        self.has_terms = rescales or self.threshold is not None or self.classifier is not None
        self.parts = max(kind.halves for kind in self.kinds) or 1
        self._allocate(estimates or self.feeds_back)

    def _allocate(self, estimates):
        plan, B, device = self.plan, self.B, self.device
        self.memory_format = memory_format = getattr(self.model, "memory_format", torch.contiguous_format)
        self.x = torch.empty((B, *self.shape), dtype=torch.float32, device=device, memory_format=memory_format)
        self.model_input = None
        if self.dtype not in (None, torch.float32) or plan.scales_input or self.parts == 2:
            size, dtype = (self.parts * B, *self.shape), self.dtype or torch.float32
            self.model_input = torch.empty(size, device=device, dtype=dtype, memory_format=memory_format)
        self.history = None
        if plan.multistep:  # each slot in the state's layout
            options = {"dtype": torch.float32, "device": device, "memory_format": memory_format}
            slots = torch.empty((3 * B, *self.shape), **options)
            self.history = slots.zero_().unflatten(0, (3, B))
        self.x0 = torch.zeros_like(self.x) if estimates else None
        self.raw = torch.empty_like(self.x) if self.threshold else None
        self.earlier = self.x0  # what a network that conditions itself is fed
        if self.feeds_back and (self.dtype not in (None, torch.float32) or self.parts == 2):
            self.earlier = torch.empty_like(self.model_input)
        self.table = plan.table().to(device, non_blocking=True)
        if estimates:
            self.estimates = plan.estimates().table().to(device, non_blocking=True)
        if self.threshold:
            plain = plan.estimates().replace(bound=float("inf"), g_0=0)
            self.raw_estimates = plain.table().to(device, non_blocking=True)
        times = plan.time.float() if plan.time.is_floating_point() else plan.time
        times = times[:, None].repeat(1, self.parts * B).to(device, non_blocking=True)
        self.times = {0: times, 1: times[:, :B], 2: times}  # by the halves of a call
        self.time = {halves: torch.empty_like(times[:1]) for halves, times in self.times.items()}
        self.counters = torch.zeros(3, dtype=torch.int64, device=device)  # seed, draw, row
        self.rng, self.counter, self.draw_and_row = self.counters[:2], self.counters[2:], self.counters[1:]
        self.one = torch.ones(2, dtype=torch.int64, device=device)  # a tensor is added sooner than a number
        # The same for the host's loop, of every row: seed, draw, row, and one more, so that all rows are aligned alike.
        self.places = torch.arange(len(plan), device=device)[:, None].repeat(1, 4)
        self.sample_ids = torch.zeros(B, dtype=torch.int64, device=device)
        self.mask = self.known = None
        self.condition = {}
        if any(plan.adjusted):
            self._allocate_adjusted()

    def _allocate_adjusted(self):
        """Room for the samples' own copies of a row, each followed by the c_in of the next."""
        pairs = torch.zeros(len(self.plan), 2, WIDTH, dtype=torch.float32, device="cpu")
        pairs[:, 0] = self.plan.table()
        pairs[:-1, 1, COLUMNS["c_in"]] = pairs[1:, 0, COLUMNS["c_in"]]
        pairs[-1, 1, COLUMNS["c_in"]] = 1
        self.pairs = pairs.to(self.device, non_blocking=True)
        self.own = torch.empty(self.B, 2, WIDTH, dtype=torch.float32, device=self.device)
        self.own_row = torch.arange(0, 2 * self.B, 2, device=self.device)

    @torch.no_grad()  # a model that differentiates may have marked the state
    def begin(self, seed, sample_ids, *, x=None, x_start=None, start=None, condition=None, known=None, mask=None):
        """A new batch: x_T = start * noise, or x, or alpha * x_start + sigma * noise with start = (alpha, sigma)."""
        counters = torch.cat([ops.rng.make_rng(seed, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu")])
        self.counters.copy_(counters, non_blocking=True)
        self.places[:, 0] = self.counters[0]
        self.sample_ids.copy_(torch.tensor(sample_ids, dtype=torch.int64, device="cpu"), non_blocking=True)
        if x is not None:
            self.x.copy_(x)
        else:
            noise = self._normal(ops.rng.INITIAL)
            alpha, sigma = (0, self.plan.start) if x_start is None else start
            self.x.copy_(noise if sigma == 1 else noise.mul_(sigma))
            if x_start is not None:
                self.x.add_(x_start, alpha=alpha)
        if self.model_input is not None:
            for half in self.model_input.chunk(self.parts):
                half.copy_(self.plan.input_scale * self.x)
        if self.history is not None:
            self.history.zero_()
        if self.feeds_back:
            self.earlier.zero_()
        self.known, self.mask = _kept(self.known, known), _kept(self.mask, mask)
        self.condition = {key: _kept(self.condition.get(key), value) for key, value in (condition or {}).items()}
        self._bind()

    def _normal(self, stream, rng=None):
        rng = self.rng if rng is None else rng
        return ops.normal(self.x.shape, rng, self.sample_ids, stream=stream, memory_format=self.memory_format)

    def _bind(self):
        """What every call of the kernel and the network is given, whichever the row."""
        tensors = {"model_input": self.model_input, "history": self.history, "mask": self.mask, "known": self.known}
        self.fixed = {name: value for name, value in tensors.items() if value is not None}
        self.draws = self.plan.draws or self.mask is not None
        if self.draws:
            self.fixed["sample_ids"] = self.sample_ids
        row, rng = self.places[:, 2:3], self.places[:, :2] if self.draws else None
        self.steps = ops.ReverseSteps(self.x, self.table, row, rng, **self.fixed)
        whole = self.x if self.model_input is None else self.model_input
        condition = {"x_self_cond": self.earlier, **self.condition} if self.feeds_back else self.condition
        conditional = {
            key: value[-self.B :] if isinstance(value, torch.Tensor) else value for key, value in condition.items()
        }
        self.fed = {
            1: (whole[-self.B :], *arguments(conditional)),
            2: (whole, *arguments(condition)),
        }

    @functools.cached_property
    def time_of_row(self):
        """For the host's loop, views of what the network is fed at each row."""
        views = {halves: self.times[halves].unbind(0) for halves in {kind.halves for kind in self.kinds}}
        if len(views) == 1:
            return next(iter(views.values()))
        return [views[kind.halves][row] for row, kind in enumerate(self.kinds)]

    def row(self, row):
        """The plan's row, the same for the host's loop: nothing on the device counts."""
        kind, time = self.kinds[row], self.time_of_row[row]
        output = self._call(kind.halves, time) if kind.halves else None
        if kind.adjusted or self.has_terms or self.x0 is not None:
            self._step(kind, time, output, self.places[row, 2:3], self.places[row, :2])
        else:
            self.steps(output, row)

    def row_on_device(self, kind):
        """The row that the device's counter names, which then moves on."""
        time = self.time[kind.halves]
        torch.index_select(self.times[kind.halves], 0, self.counter, out=time)
        output = self._call(kind.halves, time[0]) if kind.halves else None
        self._step(kind, time[0], output, self.counter, self.rng)
        self.draw_and_row.add_(self.one)

    def _step(self, kind, time, output, row, rng):
        """The kernel's part; row int64 [1] and rng [2] are on the device."""
        terms = self._terms(kind.halves, output, time, row) if self.has_terms and kind.halves else {}
        if self.x0 is not None and kind.halves:
            ops.reverse_step(self.x, output, self.estimates, row, out=self.x0, **terms)
            if self.feeds_back and self.earlier is not self.x0:
                for half in self.earlier.chunk(self.parts):
                    half.copy_(self.x0)
        if kind.adjusted:
            self._adjusted_step(kind, output, row, rng, terms)
        else:
            rng = rng if self.draws else None
            ops.reverse_step(self.x, output, self.table, row, out=self.x, rng=rng, **self.fixed, **terms)

    def _call(self, halves, time):
        x, positional, keywords = self.fed[halves]
        output = network.tensor_of(self.model(x, time, *positional, **keywords))
        if output.shape != self.expected[halves]:
            expected = list(self.expected[halves])
            raise ValueError(f"model must return a tensor of shape {expected}, got {list(output.shape)}")
        if output.device != self.device:
            raise ValueError(f"model must return a tensor on {self.device}, got {output.device}")
        return output

    def _weight(self, row):
        return self.table.index_select(0, row)[:, COLUMNS["w"]]

    def _terms(self, halves, output, time, row):
        """gain, bound, shrink [B] and extra like x, as far as this run has them."""
        terms = {}
        if halves == 2 and self.free.rescale:
            terms["gain"] = self.free.gain(output, self.shape[0], self._weight(row))
        if self.threshold is not None:
            ops.reverse_step(self.x, output, self.raw_estimates, row, out=self.raw, **terms)
            terms["bound"], terms["shrink"] = self.threshold(self.raw)
        if self.classifier is not None:
            x, positional, keywords = self.fed[1]
            with torch.inference_mode(False):
                extra = self.classifier.gradient(x, time[: self.B], *positional, **keywords)
            terms["extra"] = extra.to(self.x.dtype)
        return terms

    def _adjusted_step(self, kind, output, row, rng, terms):
        """The row with coefficients that each sample's state decides; its noise is that of the kernel."""
        self.own.copy_(self.pairs.index_select(0, row).expand_as(self.own))
        if kind.halves == 2:
            output = self.free.combine(output, self.shape[0], self._weight(row), terms.pop("gain", None))
        noise = self._normal(ops.rng.STEP, rng)
        self.plan.adjust(self.own[:, 0], row, self.x, output, noise)
        table, rng = self.own.view(2 * self.B, WIDTH), rng if self.draws else None
        ops.reverse_step(
            self.x, output, table, self.own_row, out=self.x, rng=rng, noise=noise, **self.fixed, **terms
        )  # fmt: skip


def _kinds(plan, free):
    guided = [False] * len(plan) if free is None else (plan["w"] != 1).tolist()
    halves = (call * (1 + two) for call, two in zip(plan.call, guided, strict=True))
    return list(map(_kind, halves, plan.adjusted))


_kind = functools.cache(Kind)


def _kept(before, value):
    """The value in the tensor of the batch before, whose address a captured graph knows."""
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor) and before.shape == value.shape:
        return before.copy_(value)
    return value.clone() if isinstance(value, torch.Tensor) else value
