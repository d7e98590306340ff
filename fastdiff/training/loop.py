"""The training loop: Ho et al. 2020, algorithm 1."""

import contextlib
import math
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .. import ops
from . import checkpoint
from .config import FREE, TrainConfig
from .ema import EMA
from .interrupt import Interrupted, interrupts
from .metrics import Metrics
from .timesteps import Batches, Uniform, flips, torch_seed


def train(model, process, images, out, config=None, *, settings=None, draw=None, resume=False, progress=True):
    """Trains model(x_t, t) on images and leaves everything in the directory `out`; see `fastdiff.training.checkpoint`.

    Args:
        model: a module on the device to train on, model(x [B, C, H, W], t [B]) -> [B, C, H, W]. One with a method
            `save(path)` is also saved by it, with its averaged weights. Its `memory_format`, if any, is what it is fed.
        process: `fastdiff.GaussianProcess`.
        images: uint8 [N, C, H, W].
        out: a new or empty directory or, with `resume`, that of the run to go on with.
        config: `TrainConfig`; a resumed run must be told the same, but for `FREE`.
        settings: anything else, as JSON can hold it, to keep in config.json and to compare on resuming.
        draw: draw(model, step) -> uint8 [H, W] or [H, W, 3], called every sample_every steps with the averaged weights.
        resume: go on from the last checkpoint, or from the beginning where a run was cut off before its first. On the
            same machine and number of threads, the result has the bits of a run that was never stopped.
        progress: show a bar with loss, speed and time left.

    Returns the model with its averaged weights, in evaluation mode. Ctrl-C finishes the step, saves and raises
    Interrupted, a KeyboardInterrupt. Raises ValueError, TypeError or OSError that names the argument before anything is
    written, and ValueError where the loss stops being a number; the last checkpoint stays.
    """
    config = config or TrainConfig()
    with interrupts() as interrupted, _own_generator(model):
        run = Run(model, process, images, Path(out), config, settings or {}, resume)
        with contextlib.closing(run.metrics), run.bar(progress) as bar:
            while run.step < config.steps:
                run.train_step()
                bar.update()
                stop, last = interrupted(), run.step == config.steps
                save = run.due(config.checkpoint_every) or last or stop
                if run.due(config.log_every) or save:  # before saving, to keep the last good checkpoint
                    bar.set_postfix(loss=f"{run.log():.4f}")
                if save:
                    run.save()
                if stop:
                    raise Interrupted
                if draw and config.sample_every and (run.due(config.sample_every) or last):
                    run.draw(draw)
    model.load_state_dict(run.ema.average)
    return model.eval()


class Run:
    """One run: its tensors, its optimizer, its place on disk."""

    def __init__(self, model, process, images, out, config, settings, resume):
        self.model, self.process, self.config, self.out = model, process, config, out
        self.device = next(model.parameters()).device
        self.images = _checked_images(images).to(self.device)
        self.optimizer = torch.optim.Adam(model.parameters(), config.lr, fused=self.device.type in ("cpu", "cuda"))
        self.ema = EMA(model, config.ema_decay)
        self.batches = Batches(len(images), config.batch_size, config.seed)
        self.step = self._begin({**asdict(config), "images": _fingerprint(images), **settings}, resume)
        self.metrics = Metrics(out, self.step, config.tensorboard)
        self._losses, self._norms, self._since = [], [], (time.perf_counter(), self.step)
        self._autocast = config.precision == "bf16" or (
            config.precision == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )

    def _begin(self, settings, resume):
        """Refuses or takes the directory; the step to go on from."""
        step = 0
        if resume:
            before = checkpoint.read_config(self.out, "out")
            for name, value in settings.items():
                if name not in FREE and before.get(name) != checkpoint.as_json(value):
                    raise ValueError(f"{name} must be as in the run to resume, {before.get(name)!r}, got {value!r}")
            if checkpoint.checkpoints(self.out):
                step = checkpoint.restore(self.out, self.model, self.ema, self.optimizer)
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileExistsError(f"out must be a new or empty directory, got {str(self.out)!r} (resume goes on)")
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(self.out, settings)
        return step

    def bar(self, progress):
        return tqdm(total=self.config.steps, initial=self.step, unit="step", disable=not progress, dynamic_ncols=True)

    def due(self, every):
        return self.step % every == 0

    def train_step(self):
        """x_t from images and noise, the squared error of the prediction, one step of Adam."""
        self.model.train()
        x_t, t, target = self._batch()
        torch.manual_seed(torch_seed(self.config.seed, self.step))  # of dropout
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            output = self.model(x_t, t)
        if output.shape != target.shape:
            raise ValueError(f"model must return a tensor of shape {list(target.shape)}, got {list(output.shape)}")
        loss = F.mse_loss(output.float(), target)
        self.optimizer.zero_grad()
        loss.backward()
        self._norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_factor(self.step, self.config)
        self.optimizer.step()
        self.ema.update(self.model)
        self._losses.append(loss.detach())
        self.step += 1

    def _batch(self):
        """x_t, t and the network's target: functions of (seed, step) and the place in the batch."""
        rng = ops.rng.make_rng(self.config.seed, self.step, self.device)
        ids = torch.arange(self.config.batch_size, device=self.device)
        t, _ = Uniform(self.process.num_timesteps).draw(rng, ids)
        x_start = self.images[self.batches.positions(self.step).to(self.device)]
        flip = flips(rng, ids) if self.config.flip else None
        memory_format = getattr(self.model, "memory_format", torch.contiguous_format)
        x_t, noise = self.process.q_sample(
            x_start, t, rng=rng, sample_ids=ids, flip=flip, memory_format=memory_format, return_noise=True
        )
        if self.process.prediction == "eps":
            return x_t, t, noise
        if flip is not None:
            x_start = torch.where(flip[:, None, None, None], x_start.flip(-1), x_start)
        return x_t, t, self.process.target(x_start.float() / 127.5 - 1, t, noise)

    def log(self):
        """Writes the means since the last time; returns that of the loss."""
        loss, norm = (float(torch.stack(values).mean()) for values in (self._losses, self._norms))
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must stay finite, got {value} before step {self.step}: lower lr")
        now, (before, step) = time.perf_counter(), self._since
        speed = (self.step - step) * self.config.batch_size / (now - before)
        lr = self.optimizer.param_groups[0]["lr"]
        self.metrics.log(self.step, loss=loss, lr=lr, gradient_norm=norm, images_per_s=round(speed, 1))
        self._losses, self._norms, self._since = [], [], (now, self.step)
        return loss

    def save(self):
        checkpoint.save(self.out, self.step, self.model, self.ema, self.optimizer, self.config.keep)

    def draw(self, draw):
        """A picture of what the averaged weights can do."""
        with self.ema.applied(self.model):
            image = draw(self.model, self.step)
        self.metrics.image(self.step, image)
        self._since = (time.perf_counter(), self.step)


def lr_factor(step, config):
    """Linear warm-up times a cosine from 1 to decay_to."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, step / config.steps))) / 2
    return warm * (config.decay_to + (1 - config.decay_to) * cosine)


def _checked_images(images):
    if not isinstance(images, torch.Tensor) or images.dtype is not torch.uint8:
        raise TypeError(f"images must be a uint8 tensor, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images must have shape [N, C, H, W] with N at least 1, got {list(images.shape)}")
    return images


def _fingerprint(images):
    return {"shape": list(images.shape), "crc32": zlib.crc32(images.cpu().contiguous().numpy())}


def _own_generator(model):
    """Leaves torch's global generators as they were."""
    device = next(model.parameters()).device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
