"""The training loop: Ho et al. 2020, algorithm 1."""

import contextlib
import math
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .. import ops
from . import checkpoint
from .ema import EMA
from .metrics import Metrics
from .timesteps import Batches, flips, uniform


@dataclass
class TrainConfig:
    """How to train; lengths in steps of the optimizer."""

    steps: int = 100_000
    batch_size: int = 64
    lr: float = 2e-4  # of Adam
    warmup: int = 100  # steps over which lr rises linearly
    decay_to: float = 1.0  # lr at the last step as a fraction, reached along a cosine
    grad_clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999
    flip: bool = False  # mirror half of the images
    seed: int = 0
    precision: str = "auto"  # "fp32", "bf16", or bf16 where a GPU has it
    log_every: int = 20
    checkpoint_every: int = 1000
    sample_every: int = 1000  # 0: no samples on the way
    tensorboard: bool = True

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)!r}")
        for name in ("lr", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, got {self.precision!r}")


# What a resumed run may be told anew.
FREE = ("steps", "log_every", "checkpoint_every", "sample_every", "tensorboard")


def train(model, process, images, out, config=None, *, settings=None, draw=None, resume=False, progress=True):
    """Trains model(x_t, t) on images and leaves everything in the directory `out`; see `fastdiff.training.checkpoint`.

    Args:
        model: a module on the device to train on, model(x [B, C, H, W], t [B]) -> [B, C, H, W]. One with a method
            `save(path)` is also saved by it, with its averaged weights.
        process: `fastdiff.GaussianProcess`.
        images: uint8 [N, C, H, W].
        out: a new directory or, with `resume`, that of the run to go on with.
        config: `TrainConfig`; a resumed run must be told the same, but for `FREE`.
        settings: anything else, as JSON can hold it, to keep in config.json and to compare on resuming.
        draw: draw(model) -> uint8 [H, W] or [H, W, 3], called every sample_every steps with the averaged weights.

    Returns the model with its averaged weights, in evaluation mode. Ctrl-C finishes the step, saves and raises
    KeyboardInterrupt. Raises ValueError where the loss stops being a number; the last checkpoint stays.
    """
    config = config or TrainConfig()
    run = Run(model, process, images, Path(out), config, settings or {}, resume)
    with run.metrics(), interrupts() as interrupted, run.bar(progress) as bar:
        while run.step < config.steps:
            run.train_step()
            bar.update()
            stop, last = interrupted(), run.step == config.steps
            if run.step % config.log_every == 0 or last or stop:
                bar.set_postfix(loss=f"{run.log():.4f}")
            if run.step % config.checkpoint_every == 0 or last or stop:
                run.save()
            if stop:
                raise KeyboardInterrupt
            if draw and config.sample_every and (run.step % config.sample_every == 0 or last):
                run.draw(draw)
    model.load_state_dict(run.ema.average)
    return model.eval()


class Run:
    """One run: its tensors, its optimizer, its place on disk."""

    def __init__(self, model, process, images, out, config, settings, resume):
        self.model, self.process, self.config, self.out = model, process, config, out
        self.device = next(model.parameters()).device
        self.images = _checked_images(images).to(self.device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        self.ema = EMA(model, config.ema_decay)
        self.batches = Batches(len(images), config.batch_size, config.seed)
        self.step = self._begin({**asdict(config), **settings}, resume)
        self._losses, self._since = [], (time.perf_counter(), self.step)
        self.autocast = config.precision == "bf16" or (
            config.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )

    def _begin(self, settings, resume):
        if resume:
            before = checkpoint.read_config(self.out)
            for name, value in settings.items():
                if name not in FREE and before.get(name) != checkpoint.as_json(value):
                    raise ValueError(f"{name} must be as in the run to resume, {before.get(name)!r}, got {value!r}")
            step = checkpoint.restore(self.out, self.model, self.ema, self.optimizer)
        else:
            if self.out.exists() and any(self.out.iterdir()):
                raise FileExistsError(f"out must be a new or empty directory, got {str(self.out)!r} (go on with --resume)")
            self.out.mkdir(parents=True, exist_ok=True)
            step = 0
        checkpoint.write_config(self.out, settings)
        return step

    @contextlib.contextmanager
    def metrics(self):
        self._metrics = Metrics(self.out, self.step, self.config.tensorboard)
        try:
            yield
        finally:
            self._metrics.close()

    def bar(self, progress):
        return tqdm(total=self.config.steps, initial=self.step, unit="step", disable=not progress, dynamic_ncols=True)

    def train_step(self):
        """x_t from images and noise, the squared error of the prediction, one step of Adam."""
        self.model.train()
        x_t, t, target = self._batch()
        torch.manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + self.step) % 2**63)  # of dropout
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(x_t, t)
        loss = (output.float() - target).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _lr_factor(self.step, self.config)
        self.optimizer.step()
        self.ema.update(self.model)
        self._losses.append(loss.detach())
        self.step += 1

    def _batch(self):
        """x_t, t and the network's target: functions of (seed, step) and the place in the batch."""
        rng = ops.rng.make_rng(self.config.seed, self.step, self.device)
        ids = torch.arange(self.config.batch_size, device=self.device)
        t = uniform(self.process.num_timesteps, rng, ids)
        x_start = self.images[self.batches.positions(self.step).to(self.device)]
        if self.config.flip:
            x_start = torch.where(flips(rng, ids)[:, None, None, None], x_start.flip(-1), x_start)
        memory_format = getattr(self.model, "memory_format", torch.contiguous_format)
        x_t, noise = self.process.q_sample(
            x_start, t, rng=rng, sample_ids=ids, memory_format=memory_format, return_noise=True
        )
        if self.process.prediction == "eps":
            return x_t, t, noise
        return x_t, t, self.process.target(x_start.float() / 127.5 - 1, t, noise)

    def log(self):
        """Writes the mean loss since the last time; returns it."""
        loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(loss):
            raise ValueError(f"loss must be finite, got {loss} before step {self.step}: lower lr")
        now, (before, step) = time.perf_counter(), self._since
        speed = (self.step - step) * self.config.batch_size / (now - before)
        self._metrics.log(self.step, loss=loss, lr=self.optimizer.param_groups[0]["lr"], images_per_s=round(speed, 1))
        self._losses, self._since = [], (now, self.step)
        return loss

    def save(self):
        checkpoint.save(self.out, self.step, self.model, self.ema, self.optimizer)

    def draw(self, draw):
        """A picture of what the averaged weights can do, in a file and in TensorBoard."""
        with self.ema.applied(self.model):
            image = draw(self.model)
        self._metrics.image(self.step, image)
        self._since = (time.perf_counter(), self.step)


def _checked_images(images):
    if not isinstance(images, torch.Tensor) or images.dtype is not torch.uint8 or images.dim() != 4:
        raise ValueError("images must be a uint8 tensor of shape [N, C, H, W]")
    if len(images) == 0 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square and at least one, got shape {list(images.shape)}")
    return images


def _lr_factor(step, config):
    """Linear warm-up times a cosine from 1 to decay_to."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, step / config.steps))) / 2
    return warm * (config.decay_to + (1 - config.decay_to) * cosine)


@contextlib.contextmanager
def interrupts():
    """A function that tells whether Ctrl-C was pressed; a second press interrupts at once."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, where signals cannot be handled
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
