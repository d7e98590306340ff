"""The training loop: Ho et al. 2020, algorithm 1, and what the papers since have put around it."""

import contextlib
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .. import files, ops
from ..capture import Capture
from . import checkpoint, posthoc, sharding
from .checks import check_graph, check_same, check_shares, checked_data, told
from .config import TrainConfig
from .ema import EMA
from .guard import Guard, first_bad_site
from .interrupt import Interrupted, interrupts
from .metrics import Metrics
from .objectives import Batch, Objective
from .ranks import Ranks
from .record import Record
from .supply import Supply
from .timesteps import dropped, flips, make_sampler, self_conditioned, torch_seed


def train(model, process, data, out, config=None, *, settings=None, draw=None, resume=False, progress=True):
    """Trains model(x_t, t) on images and leaves everything in the directory `out`; see `fastdiff.training.checkpoint`.

    Args:
        model: a module on the device to train on, model(x [B, C, H, W], t [B]) -> [B, C or 2C, H, W], or model(x, t,
            labels [B]) where config.label_dropout is set; label `model.num_classes` then means none. One with a method
            `save(path)` is also saved by it, with its averaged weights. Its `memory_format`, if any, is what it is fed;
            one with a true `takes_counters` is also called with counters=(rng, sample_ids), those of the noise; one
            with a true `self_condition` with x_self_cond, its own estimate of x_0 for half of the samples, chosen at
            random, and zeros for the others (Chen et al., "Analog bits", 2023, section 3.2).
        process: `fastdiff.GaussianProcess`, or another with q_sample and target.
        data: uint8 [N, C, H, W], or `fastdiff.data.Labelled`.
        out: a new or empty directory or, with `resume`, that of the run to go on with.
        config: `TrainConfig`; a resumed run must be told the same, but for `FREE`.
        settings: anything else, as JSON can hold it, to keep in config.json and to compare on resuming.
        draw: draw(model, step) -> uint8 [H, W] or [H, W, 3], called every sample_every steps with the averaged weights.
        resume: go on from the last whole checkpoint, or from the beginning where a run was cut off before its first. On
            the same machine, ranks and number of threads, the result has the bits of a run that was never stopped.
        progress: show a bar with loss, speed and time left.

    Under torchrun (`ranks.joined`) each rank takes its part of every batch, and the first one writes. Images, their
    order, timesteps and noise are functions of (seed, step, place in the global batch): the same on any number of
    ranks. Returns the model with its averaged weights, in evaluation mode. Ctrl-C finishes the step, saves and raises
    Interrupted, a KeyboardInterrupt. Raises ValueError, TypeError or OSError that names the argument before anything is
    written, and ValueError where the loss stops being a number; the last checkpoint stays.
    """
    config = config or TrainConfig()
    with interrupts() as interrupted, _own_generator(model), contextlib.ExitStack() as held:
        run = Run(model, process, data, Path(out), config, settings or {}, resume, held)
        with contextlib.closing(run), run.bar(progress) as bar:
            while run.step < config.steps:
                run.train_step()
                bar.update()
                stop, last = run.ranks.any(interrupted()), run.step == config.steps
                save = run.due(config.checkpoint_every) or last or stop
                if run.due(config.log_every) or save:  # before saving, to keep the last good checkpoint
                    bar.set_postfix(loss=f"{run.log():.4f}")
                if save:
                    run.save()
                if stop:
                    raise Interrupted
                if draw and config.sample_every and (run.due(config.sample_every) or last):
                    run.draw(draw)
    model.load_state_dict(sharding.on_cpu(run.ema.average))
    return model.to(run.device).eval()


class Run:
    """One run: its tensors, its optimizer, its place on disk, which is its own while `held` is open."""

    def __init__(self, model, process, data, out, config, settings, resume, held=None):
        images, labels = checked_data(data, model, config)
        self.model, self.process, self.config, self.out = model, process, config, out
        self.device, self.ranks = next(model.parameters()).device, Ranks()
        self.sharded = config.shard == "fsdp" and self.ranks.world > 1
        check_shares(config, self.ranks.world)
        check_graph(config, self.device, self.ranks.world)
        self.network = sharding.sharded(model) if self.sharded else model  # that is trained
        if self.sharded:
            model.to("cpu")  # for its averaged weights, when they are asked for
        self.objective = Objective(process, config.objective, config.weighting, config.gamma)
        self.timesteps = make_sampler(config.timesteps, process, config.batch_size, self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay,
            fused=_fused(self.device),
        )  # fmt: skip
        self.ema = EMA(self.network, *config.profiles())
        # What changes from step to step beside the weights, in tensors that stay in their place.
        self.rng, self.lr = ops.rng.make_rng(config.seed, 0, self.device), torch.zeros((), device=self.device)
        self.images = self.labels = None
        self.work = Capture(self._work, self.device, required=True) if config.cuda_graph else self._work
        self.step = self._begin({**asdict(config), **told(images, labels), **settings}, resume, held)
        part = self.ranks.part(config.batch_size)
        self.supply = Supply(
            images, labels, config.batch_size, config.seed, part, self.device, self.step, config.workers
        )
        self.forward = self._parallel(torch.compile(model) if config.compile else self.network)
        self.metrics = Metrics(out, self.step, config.tensorboard) if self.ranks.first else None
        self.guard = Guard(self.device)
        self.record = Record(self.device, self.ranks, self.step)
        self._autocast = config.precision == "bf16" or (
            config.precision == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )

    def _begin(self, settings, resume, held):
        """Refuses or takes the directory; the step to go on from."""
        step = 0
        if resume:
            before = checkpoint.read_config(self.out, "out")
            check_same(before, settings)
            self._hold(held)
            if checkpoint.checkpoints(self.out):
                step = checkpoint.restore(self.out, self.network, self.ema, self.optimizer, self.timesteps.state())
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileExistsError(f"out must be a new or empty directory, got {str(self.out)!r} (resume goes on)")
        self.ranks.wait()  # all have looked before one writes
        if self.ranks.first:
            self.out.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._hold(held)
            checkpoint.write_config(self.out, settings)
        return step

    def _hold(self, held):
        if held and self.ranks.first:
            held.enter_context(files.alone(self.out, "out"))

    def close(self):
        if self.metrics:
            self.metrics.close()

    def bar(self, progress):
        hidden = not (progress and self.ranks.first)
        return tqdm(total=self.config.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)

    def due(self, every):
        return self.step % every == 0

    def train_step(self):
        """Noised images, the loss of what the network makes of them, one step of AdamW and of the averages."""
        config = self.config
        self.network.train()
        self._seed()
        self._fetch()
        self.work()
        self.ema.update(self.network)
        self.step += 1
        if config.snapshot_every and self.due(config.snapshot_every) and (self.ranks.first or self.sharded):
            posthoc.save_snapshot(self.out, self.ema, write=self.ranks.first)

    def _work(self):
        """All of a step that a CUDA graph can hold: no value is read by the host, none of its own changes."""
        config = self.config
        self.optimizer.zero_grad()
        losses, times = [], []
        for part in self._parts(self._batch()):
            with self._synchronised(last=len(losses) == config.accumulate - 1):
                loss = self._loss(part)
                weighted = loss if part.weight is None else loss * part.weight
                (weighted.mean() / config.accumulate).backward()
            losses.append(loss.detach())
            times.append(part.t)
        loss, t = torch.cat(losses), torch.cat(times)
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_clip))
        # One step of the optimizer, or none where the gradient is bad: the device decides.
        self.optimizer.found_inf = self.ranks.mean(self.guard.check(loss.mean(), norm, self.rng[1]))
        self.optimizer.step()
        self.timesteps.update(t, loss)
        self.record.note(loss, self._share(t), norm)

    def _seed(self):
        """Of what a network draws from torch's generators: the ranks' draws differ."""
        torch.manual_seed(torch_seed(self.config.seed, self.step * self.ranks.world + self.ranks.rank))

    def _fetch(self):
        """What the host gives to this step: its number, its learning rate, its images and their labels."""
        config = self.config
        lr = config.lr * lr_factor(self.step, config)
        self.rng[1:].fill_(self.step)
        self.lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group.update({"lr": self.lr, "capturable": True} if config.cuda_graph else {"lr": lr})
        images, labels = self.supply.batch(self.step)
        if config.cuda_graph and self.images is not None:
            self.images.copy_(images)
            self.labels = labels if labels is None else self.labels.copy_(labels)
        else:
            self.images, self.labels = images, labels

    def _batch(self):
        """This rank's part of the step's batch: functions of (seed, step) and the places in it."""
        config, rng, x_start, labels = self.config, self.rng, self.images, self.labels
        ids = torch.arange(config.batch_size, device=self.device)[self.ranks.part(config.batch_size)]
        t, weight = self.timesteps.draw(rng, ids)
        flip = flips(rng, ids) if config.flip else None
        if config.label_dropout is not None:
            none = dropped(rng, ids, config.label_dropout)
            labels = torch.where(none, self.model.num_classes, labels)
        memory_format = getattr(self.model, "memory_format", torch.contiguous_format)
        x_t = self.process.q_sample(
            x_start, t, rng=rng, sample_ids=ids, flip=flip, dtype=torch.float32, memory_format=memory_format
        )
        return Batch(x_start, x_t, t, self._time(t), rng, ids, flip, labels, weight)

    def _time(self, t):
        """What the network is told of t."""
        return self.process.label(t).float() if t.is_floating_point() else t

    def _parts(self, batch):
        """The batch in `accumulate` equal parts, one after the other."""
        size = len(batch.t) // self.config.accumulate
        for start in range(0, len(batch.t), size):
            here = slice(start, start + size)
            cut = {name: None if value is None else value[here] for name, value in batch._asdict().items()}
            yield Batch(**{**cut, "rng": batch.rng})

    def _synchronised(self, last):
        """Gradients go between the ranks with the last part alone."""
        if self.sharded:
            self.network.set_requires_gradient_sync(last)
        if last or self.ranks.world == 1 or self.sharded:
            return contextlib.nullcontext()
        return self.forward.no_sync()

    def _parallel(self, network):
        if self.ranks.world == 1 or self.sharded:
            return network
        return DistributedDataParallel(network, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def _loss(self, batch):
        """[b] of the samples of a part."""
        labels = () if self.config.label_dropout is None else (batch.labels,)
        keywords = {"counters": (batch.rng, batch.sample_ids)} if getattr(self.model, "takes_counters", False) else {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            if getattr(self.model, "self_condition", False):
                keywords["x_self_cond"] = self._estimate(batch, labels, keywords)
            output = self.forward(batch.x_t, batch.time, *labels, **keywords)
        B, C, *size = batch.x_t.shape
        wanted = [B, 2 * C if getattr(self.process, "variance", "").startswith("learned") else C, *size]
        if list(output.shape) != wanted:
            raise ValueError(f"model must return a tensor of shape {wanted}, got {list(output.shape)}")
        return self.objective(output, batch)

    @torch.no_grad()
    def _estimate(self, batch, labels, keywords):
        """The network's own x_0 of half of the samples, zeros of the others: like x_t."""
        output = self.forward(batch.x_t, batch.time, *labels, **keywords)[:, : batch.x_t.shape[1]]
        x0 = self.process.predict_x0(batch.x_t.float(), batch.t, output.float()).to(batch.x_t.dtype)
        shown = self_conditioned(batch.rng, batch.sample_ids)
        return x0.where(shown.view(-1, *(1,) * (x0.dim() - 1)), 0)

    def _share(self, t):
        """t as a share of its range, in [0, 1]."""
        if t.is_floating_point():
            return (t - self.process.t_min) / (self.process.t_max - self.process.t_min)
        return t.double() / self.process.num_timesteps

    def log(self):
        """Writes the means since the last time; returns that of the loss. Raises where a step was bad."""
        bad = self.guard.first()
        if bad is not None:
            raise ValueError(self._complaint(bad))
        said = self.record.take(self.step, self.config.batch_size)
        if self.ranks.first:
            self.metrics.log(self.step, lr=float(self.optimizer.param_groups[0]["lr"]), **said)
        return said["loss"]

    def _complaint(self, step):
        """Where the first number of a step that is none came from; the step is made again to see it."""
        self.step = step
        self._seed()
        self._fetch()
        self.optimizer.zero_grad()
        parts = self._parts(self._batch())
        site = first_bad_site(self.network, lambda: [self._loss(part).mean().backward() for part in parts])
        where = f", first in {site}" if site else ""
        return f"loss must stay finite, got none in step {step}{where}: lower lr or use fp32"

    def save(self):
        if self.ranks.first or self.sharded:
            checkpoint.save(
                self.out, self.step, self.network, self.ema, self.optimizer, self.config.keep, self.timesteps.state(),
                plain=self.model if self.sharded else None, write=self.ranks.first,
            )  # fmt: skip
        self.ranks.wait()

    def draw(self, draw):
        """A picture of what the averaged weights can do."""
        average = sharding.on_cpu(self.ema.average, self.ranks.first) if self.sharded else None
        if self.ranks.first:
            with self._averaged(average):
                image = draw(self.model, self.step)
            self.metrics.image(self.step, image)
        self.ranks.wait()
        self.record.pause(self.step)


    @contextlib.contextmanager
    def _averaged(self, average):
        """The model that was given with averaged weights; where ranks hold parts, `average` is the whole of them."""
        if average is None:
            with self.ema.applied(self.model):
                yield
        else:
            self.model.load_state_dict(average)
            self.model.to(self.device)
            try:
                yield
            finally:
                self.model.to("cpu")


def lr_factor(step, config):
    """Linear warm-up times a cosine from 1 to decay_to."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, step / config.steps))) / 2
    return warm * (config.decay_to + (1 - config.decay_to) * cosine)


def _fused(device):
    return device.type in ("cpu", "cuda")


def _own_generator(model):
    """Leaves torch's global generators as they were."""
    device = next(model.parameters()).device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
