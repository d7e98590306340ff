"""The loop: any network, any process, any plan."""

import contextlib
import operator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm

from .. import ops
from . import network
from .solvers import SOLVERS


class Step(NamedTuple):
    """What `Sampler.stream` yields after each row of the plan."""

    row: int
    time: int | float  # what the network was fed
    x: torch.Tensor  # [n, C, H, W] float32, the state after the row
    x0: torch.Tensor  # [n, C, H, W] float32, the row's estimate of the clean data, clipped


class Sampler:
    """x_T = noise; then for each row of `plan`: x = reverse_step(x, model(x, time), row).

    Args:
        model: callable, model(x, t) -> [B, C, *], with x [B, C, *] and t [B], int64 timesteps of the process that it
            was trained on. x is reused from row to row: a model that keeps it must clone it. A module runs in
            evaluation mode and is left in the mode it came in. `model.sample_shape` = (C, H, W) lets `sample` take a
            number; `model.memory_format` = torch.channels_last asks for that layout.
        process: `fastdiff.GaussianProcess`.
        solver: "ddpm", or a function (process, timesteps, *, clip) -> Plan.
        steps: number of rows, evenly spaced over the process, or the timesteps to use; None: every timestep.
        clip: bound of the estimates of x_0, or None.
        precision: of the network. "auto": bfloat16 autocast for a float32 module on a GPU with bfloat16 units, else as
            the module is; "fp32": no autocast; "bf16", "fp16": autocast. A module of half-precision parameters is fed
            its own dtype, by "auto" or by that dtype's name. The state is float32 always.
        device: where to sample; None: where the module's parameters are, else the CPU.

    Noise comes from the counter RNG: sample i of a seed has the same noise in every batch and on every device. Raises
    ValueError or TypeError that names the argument; what the model raises passes through.
    """

    def __init__(self, model, process, solver="ddpm", steps=None, *, clip=1.0, precision="auto", device=None):
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        if not callable(solver) and solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, or a function, got {solver!r}")
        if clip is not None and (isinstance(clip, bool) or not clip > 0):
            raise ValueError(f"clip must be a positive number or None, got {clip!r}")
        self.model, self.process, self.precision, self.device = model, process, precision, device
        network.check_precision(precision, network.locate(model, device)[1])
        self.plan = (solver if callable(solver) else SOLVERS[solver])(process, steps, clip=clip)

    def sample(self, n=None, seed=0, sample_ids=None, *, batch_size=None, progress=False):
        """Samples [n, C, H, W] in float32, contiguous, not clamped.

        Args:
            n: their number, or their shape (n, C, H, W), which a model without `sample_shape` needs; None: as many as
                sample_ids.
            seed: int in [-2^63, 2^64).
            sample_ids: n ints in [0, 2^32), the identities that noise is a function of; None: 0..n-1.
            batch_size: work in batches of exactly this size, the last one padded, so that a sample's bytes do not
                depend on n; None: all at once.
            progress: show a progress bar.
        """
        shape, ids = self._shape_and_ids(n, sample_ids)
        size = max(len(ids), 1) if batch_size is None else _count("batch_size", batch_size, 1)
        starts = range(0, len(ids), size)
        result = torch.empty((len(ids), *shape), device=network.locate(self.model, self.device)[0])
        with tqdm(total=len(starts) * len(self.plan), unit="step", disable=not progress) as bar:
            for start in starts:
                batch = ids[start : start + size]
                run = self._start(shape, batch + batch[-1:] * (size - len(batch)), seed)
                with self._mode():
                    for row in range(len(self.plan)):
                        self._advance(run, self._call(run, row))
                        bar.update()
                result[start : start + size] = run.x[: len(batch)]
        return result

    def stream(self, n=None, seed=0, sample_ids=None):
        """An iterator of one `Step` after each row of the plan; the last one's x is what `sample` returns.

        Arguments as for `sample`, one batch. Each x and x0 is a tensor of its own. Between steps the model is in the
        mode it came in.
        """
        return self._stream(self._start(*self._shape_and_ids(n, sample_ids), seed))

    def _stream(self, run):
        estimates = self.plan.estimates().table(run.x.device)
        for row, time in enumerate(self.plan.time.tolist()):
            x0 = torch.empty_like(run.x)
            with self._mode():
                output = self._call(run, row)
                ops.reverse_step(run.x, output, estimates, run.row, out=x0)
                self._advance(run, output)
            yield Step(row, time, run.x.clone(memory_format=torch.contiguous_format), x0.contiguous())

    def _start(self, shape, ids, seed):
        """A batch's tensors on the device, made outside inference mode so that results are ordinary tensors."""
        device, dtype = network.locate(self.model, self.device)
        network.check_precision(self.precision, dtype)
        memory_format = getattr(self.model, "memory_format", torch.contiguous_format)
        counters = torch.cat([ops.rng.make_rng(seed, device=device), torch.zeros(1, dtype=torch.int64, device=device)])
        sample_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        x = ops.normal((len(ids), *shape), counters[:2], sample_ids, memory_format=memory_format)
        plan, model_input = self.plan, None
        if plan.start != 1:
            x.mul_(plan.start)
        if dtype not in (None, torch.float32) or plan.scales_input:
            model_input = (plan.input_scale * x).to(dtype or torch.float32)
        times = plan.time.float() if plan.time.is_floating_point() else plan.time
        return _Run(
            x=x,
            model_input=model_input,
            history=x.new_zeros((3, *x.shape)) if plan.multistep else None,
            table=plan.table(device),
            times=times.to(device)[:, None].repeat(1, len(ids)),
            rng=counters[:2],
            row=counters[2:],
            draw_and_row=counters[1:],
            sample_ids=sample_ids,
        )

    def _call(self, run, row):
        """The network's output at this row; None where the plan does not ask for it."""
        if not self.plan.call[row]:
            return None
        output = self.model(run.x if run.model_input is None else run.model_input, run.times[row])
        if row == self.plan.call.index(True):
            self._check_output(output, run.x)
        return output

    def _advance(self, run, output):
        ops.reverse_step(
            run.x, output, run.table, run.row,
            out=run.x, model_input=run.model_input, history=run.history, rng=run.rng, sample_ids=run.sample_ids,
        )  # fmt: skip
        run.draw_and_row.add_(1)

    @contextlib.contextmanager
    def _mode(self):
        device, dtype = network.locate(self.model, self.device)
        autocast = network.autocast(self.precision, device, dtype)
        with network.evaluating(self.model), torch.inference_mode(), autocast:
            yield

    def _check_output(self, output, x):
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"model must return a tensor, got {type(output).__name__}")
        B, C, *spatial = x.shape
        expected = [B, 2 * C if self.plan.learned else C, *spatial]
        if list(output.shape) != expected:
            raise ValueError(f"model must return a tensor of shape {expected}, got {list(output.shape)}")
        if output.device != x.device:
            raise ValueError(f"model must return a tensor on {x.device}, got {output.device}")

    def _shape_and_ids(self, n, sample_ids):
        """((C, H, W), list of ids)."""
        shape = getattr(self.model, "sample_shape", None)
        if sample_ids is not None:
            sample_ids = sample_ids.tolist() if hasattr(sample_ids, "tolist") else list(sample_ids)
            outside = [i for i in sample_ids if not 0 <= operator.index(i) < 2**32]
            if outside:
                raise ValueError(f"sample_ids must be in [0, 2**32), got {outside[0]}")
        if n is None:
            if sample_ids is None:
                raise ValueError("n must be given where sample_ids is not, got None")
            n = len(sample_ids)
        elif hasattr(n, "__len__"):
            n, *shape = n
        if shape is None:
            raise ValueError(f"n must be a shape (n, C, H, W) for a model without sample_shape, got {n}")
        n, shape = _count("n", n, 0), tuple(_count("n's C, H, W", extent, 1) for extent in shape)
        if sample_ids is not None and len(sample_ids) != n:
            raise ValueError(f"sample_ids must hold n = {n} ids, got {len(sample_ids)}")
        return shape, list(range(n)) if sample_ids is None else sample_ids


@dataclass
class _Run:
    """One batch in flight. rng, row and draw_and_row are views of one tensor, (seed, draw, row), advanced in place."""

    x: torch.Tensor  # [B, C, *] float32
    model_input: torch.Tensor | None  # [B, C, *] in the network's dtype, where that is not x itself
    history: torch.Tensor | None  # [3, B, C, *]
    table: torch.Tensor  # [S, 24] float32
    times: torch.Tensor  # [S, B]
    rng: torch.Tensor
    row: torch.Tensor
    draw_and_row: torch.Tensor
    sample_ids: torch.Tensor  # [B] int64


def _count(name, value, least):
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if isinstance(value, bool) or count < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    return count
