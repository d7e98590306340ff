"""What a training step draws besides its noise: functions of (seed, step), so that a resumed run needs no RNG state."""

import torch

from ..ops import reference
from ..ops import rng as streams


def _words(rng, sample_ids, stream):
    """One Philox word of (seed, draw, sample_id) each: int64 [B] in [0, 2^32)."""
    return reference.words(1, rng, sample_ids, stream)[0, :, 0]


def flips(rng, sample_ids):
    """A fair coin of each sample: bool [B]."""
    return _words(rng, sample_ids, streams.FLIPS) >= 2**31


def dropped(rng, sample_ids, probability):
    """Which samples lose their label, each with this probability: bool [B]."""
    return _words(rng, sample_ids, streams.LABELS) < round(probability * 2**32)


def self_conditioned(rng, sample_ids):
    """Which samples are shown an estimate of their x_0: half of them, bool [B]."""
    return _words(rng, sample_ids, streams.SELF_CONDITION) >= 2**31


def torch_seed(seed, number):
    """A seed for a torch generator, in [0, 2^63): those of consecutive numbers or seeds differ."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63


class Uniform:
    """t = floor(T * w / 2^32), w the sample's word: every timestep is as likely.

    Like every sampler of timesteps here: draw(rng, sample_ids) -> (t int64 [B], weight float32 [B] = 1 / (T p(t)), or
    None where it is 1); update(t, loss) learns from the losses of a step; state() are the tensors that it keeps.
    """

    def __init__(self, num_timesteps):
        self.num_timesteps = num_timesteps

    def draw(self, rng, sample_ids):
        return (_words(rng, sample_ids, streams.TIMESTEPS) * self.num_timesteps) >> 32, None

    def update(self, t, loss):
        pass

    def state(self):
        return {}


class Times(Uniform):
    """t = t_max - (t_max - t_min) u of a process in continuous time: float64 [B] in (t_min, t_max].

    u = w / 2^32, w the sample's word; with batch_size B, u = (i / B + w / 2^32) mod 1 at place i, one w a step.
    """

    def __init__(self, t_min, t_max, batch_size=None):
        self.t_min, self.t_max, self.batch_size = t_min, t_max, batch_size

    def draw(self, rng, sample_ids):
        if self.batch_size is None:
            u = _words(rng, sample_ids, streams.TIMESTEPS)
        else:
            offset = _words(rng, torch.zeros_like(sample_ids[:1]), streams.TIMESTEPS)
            u = ((sample_ids << 32) // self.batch_size + offset) & (2**32 - 1)
        return self.t_max - (self.t_max - self.t_min) * (u.double() * 2.0**-32), None


class Stratified(Uniform):
    """t = floor(T * ((i / B + u) mod 1)) of the sample at place i of a batch of B, one u a step: evenly spread.

    Each t alone is uniform; the mean over a batch of a function of t varies less than with `Uniform`.
    Source: Kingma et al., "Variational diffusion models", 2021, appendix I.1.
    """

    def __init__(self, num_timesteps, batch_size):
        super().__init__(num_timesteps)
        self.batch_size = batch_size

    def draw(self, rng, sample_ids):
        offset = _words(rng, torch.zeros_like(sample_ids[:1]), streams.TIMESTEPS)
        position = ((sample_ids << 32) // self.batch_size + offset) & (2**32 - 1)
        return (position * self.num_timesteps) >> 32, None


class LossAware(Uniform):
    """p(t) = (1 - u) s(t) / sum of s + u / T,  s(t) = sqrt(mean of the last `history` squared losses at t).

    Until every timestep has had `history` losses p is uniform. Kept and drawn on the device, without a host read.

    Args:
        num_timesteps: T.
        history: losses kept of each timestep.
        uniform: u, the share of the uniform distribution, so that no timestep is forgotten.
        device: where losses are.

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 3.3, equation 18.
    """

    def __init__(self, num_timesteps, history=10, uniform=0.001, device=None):
        super().__init__(num_timesteps)
        if history < 1 or not 0 <= uniform <= 1:
            raise ValueError(f"history must be positive and uniform in [0, 1], got {history} and {uniform}")
        self.uniform = uniform
        # A ring of losses for each timestep, and one more row for what is not to be kept.
        self.losses = torch.zeros(num_timesteps + 1, history, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64, device=device)

    def probabilities(self):
        """p(t), float64 [T]."""
        T, history = self.num_timesteps, self.losses.shape[1]
        spread = self.losses[:T].square().mean(1).sqrt()
        spread = spread / spread.sum() * (1 - self.uniform) + self.uniform / T
        return torch.where((self.counts >= history).all(), spread, 1 / T)

    def draw(self, rng, sample_ids):
        p = self.probabilities()
        edges = p.cumsum(0)
        u = (_words(rng, sample_ids, streams.TIMESTEPS).double() + 0.5) * 2.0**-32 * edges[-1]
        t = torch.searchsorted(edges, u, right=True).clamp_(max=self.num_timesteps - 1)
        return t, (1 / (self.num_timesteps * p[t])).float()

    def update(self, t, loss):
        """Takes the losses [B] of the timesteps t [B], in order; those of every rank where there are several.

        A loss that is not finite is passed over: kept, it would leave no probabilities.
        """
        t, loss = _gathered(t), _gathered(loss.detach().double())
        history, finite = self.losses.shape[1], loss.isfinite()
        same = (t[:, None] == t[None]) & finite  # [this one, another one]
        earlier = same.tril(-1).sum(1)  # of this batch and this timestep
        later = same.triu(1).sum(1)
        place = (self.counts[t] + earlier) % history
        row = torch.where(finite & (later < history), t, self.num_timesteps)  # what would be overwritten is not written
        self.losses.index_put_((row, place), loss)
        self.counts.scatter_add_(0, t, finite.to(t.dtype))

    def state(self):
        return {"losses": self.losses, "counts": self.counts}


def _gathered(value):
    """The values of all ranks, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.cat(parts)


SAMPLERS = ("uniform", "stratified", "loss-aware")


def make_sampler(kind, process, batch_size, device=None):
    """The sampler of timesteps of this name, one of `SAMPLERS`; of times where the process is in continuous time."""
    if kind not in SAMPLERS:
        raise ValueError(f"timesteps must be one of {', '.join(SAMPLERS)}, got {kind!r}")
    if hasattr(process, "t_max"):
        if kind == "loss-aware":
            raise ValueError(f"timesteps must be uniform or stratified for a {type(process).__name__}, got {kind!r}")
        return Times(process.t_min, process.t_max, batch_size if kind == "stratified" else None)
    if kind == "uniform":
        return Uniform(process.num_timesteps)
    if kind == "stratified":
        return Stratified(process.num_timesteps, batch_size)
    return LossAware(process.num_timesteps, device=device)


class Batches:
    """Which images step s trains on: consecutive ones of an order drawn anew each epoch.

    A pure function of (seed, step): `positions(step)` [batch_size] int64 in [0, N), the global batch in order; rank r
    of R takes its r-th part.
    """

    def __init__(self, num_images, batch_size, seed):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._orders = {}

    def positions(self, step):
        N, first = self.num_images, step * self.batch_size
        end = first + self.batch_size
        epochs = range(first // N, (end - 1) // N + 1)
        return torch.cat([self._order(epoch)[max(first - epoch * N, 0) : end - epoch * N] for epoch in epochs])

    def _order(self, epoch):
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            generator = torch.Generator().manual_seed(torch_seed(self.seed, epoch))
            self._orders[epoch] = torch.randperm(self.num_images, generator=generator)
        return self._orders[epoch]
