"""The loop: any network, any process, any plan."""

import contextlib
import importlib
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..capture import Capture
from . import network
from . import options as options_
from .free_run import FreeRun
from .guidance import ClassifierFree
from .levels import levels
from .plan import Plan
from .request import Request, count
from .run import Run
from .solvers import SOLVERS
from .thresholding import DynamicThreshold


class Step(NamedTuple):
    """What a run looks like after a row of the plan."""

    row: int
    time: int | float  # what the network was fed
    x: torch.Tensor  # [n, C, H, W] float32, the state after the row
    x0: torch.Tensor  # [n, C, H, W] float32, the last estimate of the clean data, clipped


class Sampler:
    """x_T = noise; then for each row of `plan`: x = reverse_step(x, model(x, time), row).

    Args:
        model: callable, model(x, t) -> [B, C, *], with x [B, C, *] and t [B], int64 timesteps of the process that it
            was trained on; its output may lie in a tuple, a dict or an object's `.sample`. x, t and conditions are
            reused from row to row: a model that keeps or changes them must clone them. A module runs in evaluation mode
            and is left in the mode it came in; gradients are off, and a model may turn them on for what it
            differentiates itself.
            `model.sample_shape` = (C, H, W) lets `sample` take a number; `model.memory_format` = torch.channels_last
            asks for that layout; `model.null_condition` is the condition of unconditional samples. Where
            `model.self_condition` is true, x_self_cond is the x_0 estimated by the call before, zeros at first; solvers
            that choose their own steps leave it out.
        process: `fastdiff.GaussianProcess`.
        solver: "ddpm", or a function (process, timesteps, *, clip, **options) -> Plan, or one that chooses its own
            steps in place of the Plan (see `FreeRun`).
        steps: number of rows, evenly spaced over the process, or the timesteps to use; None: every timestep.
        guidance: a weight, or `ClassifierFree`, or `Classifier`; None: the model as it is.
        clip: bound of the estimates of x_0, or None, or `DynamicThreshold`.
        precision: of the network. "auto": bfloat16 autocast for a float32 module on a GPU or CPU that multiplies it
            faster, else as the module is; "fp32": no autocast; "bf16", "fp16": autocast. A module of half-precision
            parameters is fed its own dtype, by "auto" or by that dtype's name. The state is float32 always.
        compile: run each step through torch.compile; a dict: its options. It has no graph break but the model's.
        cuda_graph: on a GPU, record a step once and replay it. "auto": where that works, with a warning where not;
            True: or raise; False: never. See `fastdiff.capture.Capture`.
        device: where to sample; None: where the module's parameters are, else the CPU.
        options: the solver's own, such as eta.

    Noise comes from the counter RNG: sample i of a seed has the same noise in every batch and on every device. Raises
    ValueError or TypeError that names the argument; what the model raises passes through.
    """

    def __init__(
        self,
        model,
        process,
        solver="ddpm",
        steps=None,
        *,
        guidance=None,
        clip=1.0,
        precision="auto",
        compile=False,
        cuda_graph="auto",
        device=None,
        **options,
    ):
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        network.check_precision(precision, network.locate(model, device)[1])
        options_.check_modes(compile, cuda_graph)
        self.model, self.process, self.precision, self.device = model, process, precision, device
        self.compile, self.cuda_graph, self._refused = compile, cuda_graph, False
        self.guidance, self.clip = options_.checked_guidance(guidance), options_.checked_clip(clip)
        self.solver, self.steps, self.options = solver, steps, options
        options_.check_solver(solver, options)
        self.plan = self.plan_of(steps)

    @classmethod
    def from_diffusers(cls, pipeline_or_folder, **options):
        """The sampler of a diffusers pipeline, or of its folder; see `fastdiff.integrations.diffusers.sampler`."""
        return importlib.import_module("fastdiff.integrations.diffusers").sampler(pipeline_or_folder, **options)

    def plan_of(self, steps, since=0):
        """This sampler's plan for these timesteps; since: the row of `plan` that it begins at, if not at its first."""
        solve = self.solver if callable(self.solver) else SOLVERS[self.solver]
        clip = 1.0 if isinstance(self.clip, DynamicThreshold) else self.clip
        plan = solve(self.process, steps, clip=clip, **self.options)
        if self.guidance is None or not isinstance(plan, Plan):
            return plan
        guidance = self.guidance.since(since) if isinstance(self.guidance, ClassifierFree) else self.guidance
        return guidance.plan(plan, self.levels)

    @property
    def guided(self):
        """Whether the network is ever run in two halves."""
        if not isinstance(self.guidance, ClassifierFree):
            return False
        w = self.plan["w"] if isinstance(self.plan, Plan) else self.guidance.w
        return bool((torch.as_tensor(w, dtype=torch.float64, device="cpu") != 1).any())

    def levels(self, plan):
        """(alpha, sigma), each [S + 1]: x = alpha * x_0 + sigma * eps before each row of a plan of this sampler."""
        return levels(self.process, plan, self.steps)

    def sample(
        self,
        n=None,
        seed=0,
        sample_ids=None,
        condition=None,
        *,
        batch_size=None,
        x=None,
        x_start=None,
        strength=1.0,
        inpaint=None,
        callback=None,
        progress=False,
    ):
        """Samples [n, C, H, W] in float32, contiguous, not clamped.

        Args:
            n: their number, or their shape (n, C, H, W), which a model without `sample_shape` needs; None: as many as
                sample_ids, x or x_start.
            seed: int in [-2^63, 2^64).
            sample_ids: n ints in [0, 2^32), the identities that noise is a function of; None: 0..n-1.
            condition: labels or a tensor, the model's third argument, or a dict of keywords; see `Condition`.
            batch_size: work in batches of exactly this size, the last one padded, so that a sample's bytes do not
                depend on n; None: all at once.
            x: [n or 1, C, H, W], the state before the first row instead of noise: an inversion's result, or its image.
            x_start: [n or 1, C, H, W], images to change: the run starts from their noised version.
            strength: in (0, 1], the share of the rows that are run on x_start, the last ones.
            inpaint: (known, mask), mask 1 where to generate, or `Inpaint`, which has RePaint's jumps.
            callback: callback(step) after each row of each batch, a `Step`; True ends the batch there.
            progress: show a progress bar; or the caller's own, to move on by one a row.
        """
        request = Request(self, n, seed, sample_ids, condition, x, x_start, strength, inpaint)
        size = max(request.n, 1) if batch_size is None else count("batch_size", batch_size, 1)
        run, finish, total = self._prepare(request, size, callback)
        result = torch.empty((request.n, *request.shape), dtype=torch.float32, device=run.device)
        starts = range(0, request.n, size)
        with _bar(progress, len(starts) * total) as bar:
            for start in starts:
                positions = list(range(start, min(start + size, request.n)))
                request.begin(run, positions)
                finish(bar, len(positions))
                result[start : start + size] = run.x[: len(positions)].detach()
        return result

    def _prepare(self, request, size, callback):
        """(run, finish(bar, n) that takes it from its first row to its last, units of the bar it then has moved)."""
        if not isinstance(self.plan, Plan):
            self._check_free(callback)
            run = FreeRun(self, request.shape, size)
            return run, lambda bar, n: self._finish_freely(run, bar), 1
        run = Run(self, request.plan, request.shape, size, estimates=callback is not None)
        advance, rows = self._advance(run), len(request.plan)
        if callback is None:
            return run, lambda bar, n: self._finish(advance, rows, bar), rows
        return run, lambda bar, n: _watch(self._steps(run, advance, n), callback, bar), rows

    def _finish(self, advance, rows, bar):
        with self._mode():
            for row in range(rows):
                advance(row)
                bar.update()

    def _finish_freely(self, run, bar):
        done = bar.n
        with self._mode():
            run.finish(lambda fraction: bar.update(done + fraction - bar.n))
        bar.update(done + 1 - bar.n)

    def _check_free(self, callback=None):
        if callback is not None:
            raise ValueError("callback must be None for a solver that chooses its own steps")
        if self.compile or self.cuda_graph is True:
            name = "compile" if self.compile else "cuda_graph"
            raise ValueError(f"{name} must be off for a solver that chooses its own steps, got True")

    def stream(self, n=None, seed=0, sample_ids=None, condition=None, *, every=1, **options):
        """An iterator of a `Step` after every so many rows of the plan and after its last, whose x `sample` returns.

        Arguments as for `sample`, one batch. Each x and x0 is a tensor of its own. Between steps the model is in the
        mode it came in.
        """
        every = count("every", every, 1)
        run = self._run(n, seed, sample_ids, condition, estimates=True, **options)
        return self._steps(run, self._advance(run), run.B, every)

    def trajectory(self, *arguments, **options):
        """(x, x0), each [rows, n, C, H, W]: the steps of `stream`, whose arguments these are, stacked."""
        steps = list(self.stream(*arguments, **options))
        return torch.stack([step.x for step in steps]), torch.stack([step.x0 for step in steps])

    def _run(self, n=None, seed=0, sample_ids=None, condition=None, *, estimates=False, x=None, x_start=None,
             strength=1.0, inpaint=None):  # fmt: skip
        """All samples of a request as one batch, ready for its first row."""
        if not isinstance(self.plan, Plan):
            raise ValueError("stream must have a solver with a plan, got one that chooses its own steps")
        request = Request(self, n, seed, sample_ids, condition, x, x_start, strength, inpaint)
        run = Run(self, request.plan, request.shape, request.n, estimates=estimates)
        request.begin(run, list(range(request.n)))
        return run

    def _steps(self, run, advance, n, every=1):
        times = run.plan.time.tolist()
        for row, time in enumerate(times):
            with self._mode():
                advance(row)
            if (row + 1) % every == 0 or row + 1 == len(times):
                x, x0 = (v.detach()[:n].clone(memory_format=torch.contiguous_format) for v in (run.x, run.x0))
                yield Step(row, time, x, x0)

    def _advance(self, run):
        """advance(row): the run's next row, from the host, compiled, or replayed."""
        step = run.row_on_device
        if self.compile:
            step = torch.compile(step, **{"dynamic": False, **(self.compile if isinstance(self.compile, dict) else {})})
        if not _has_graphs(run.device) and self.cuda_graph is True:
            raise ValueError(f"cuda_graph must be 'auto' or False on {run.device}, got True")
        if _has_graphs(run.device) and self.cuda_graph and not self._refused:
            return self._replay(run, Capture(step, run.device, required=self.cuda_graph is True))
        return (lambda row: step(run.kinds[row])) if self.compile else run.row

    def _replay(self, run, capture):
        def advance(row):
            capture(run.kinds[row])
            self._refused = capture.refused is not None  # then not tried again

        return advance

    @contextlib.contextmanager
    def _mode(self):
        device, dtype = network.locate(self.model, self.device)
        autocast = network.autocast(self.precision, device, dtype, self.model)
        with network.evaluating(self.model), torch.no_grad(), autocast:
            yield


def _bar(progress, total):
    if hasattr(progress, "update"):
        return contextlib.nullcontext(progress)
    return tqdm(total=total, unit="step", disable=not progress)


def _has_graphs(device):
    return device.type == "cuda"


def _watch(steps, callback, bar):
    """Shows each step to the callback until that says True."""
    for step in steps:
        bar.update()
        answer = callback(step)
        if (answer.tolist() if hasattr(answer, "tolist") else answer) is True:  # comparisons give NumPy's and tensors
            return
