"""What a training step draws besides its noise: functions of (seed, step), so that a resumed run needs no RNG state."""

import torch

from ..ops import reference
from ..ops import rng as streams


def uniform(num_timesteps, rng, sample_ids):
    """t = floor(T * w / 2^32), w a Philox word of (seed, draw, sample_id): int64 [B] in [0, T)."""
    word = reference.words(1, rng, sample_ids, streams.TIMESTEPS)[0, :, 0]
    return (word * num_timesteps) >> 32


def flips(rng, sample_ids):
    """A fair coin of each sample: bool [B]."""
    return reference.words(1, rng, sample_ids, streams.FLIPS)[0, :, 0] >= 2**31


def torch_seed(seed, number):
    """A seed for a torch generator, in [0, 2^63): those of consecutive numbers or seeds differ."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63


class Batches:
    """Which images step s trains on: consecutive ones of an order drawn anew each epoch.

    A pure function of (seed, step): `positions(step)` [batch_size] int64 in [0, N).
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
