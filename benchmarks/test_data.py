"""From images in memory to a noised batch: ours from uint8 in one pass, against the usual data loader and tensor code.

`eager` is what research code has: a Dataset of float tensors that flips at random, a DataLoader, then the noising.
"""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.training.supply import Supply

N, SHAPE, B = 512, (3, 32, 32), 64


class Usual(Dataset):
    """Images as float arrays in [-1, 1], half of them flipped."""

    def __init__(self, images):
        self.images = images.numpy()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        image = self.images[place].astype(np.float32) / 127.5 - 1
        return np.ascontiguousarray(image[..., ::-1]) if np.random.random() < 0.5 else image


def endless(loader):
    while True:
        yield from loader


def usual(images, process, device):
    batches = endless(DataLoader(Usual(images), B, shuffle=True, drop_last=True))
    alpha, sigma = process.alpha.float().to(device), process.sigma.float().to(device)

    def batch():
        x_start = next(batches).to(device)
        t = torch.randint(0, 1000, (B,), device=device)
        noise = torch.randn_like(x_start)
        return alpha[t].view(-1, 1, 1, 1) * x_start + sigma[t].view(-1, 1, 1, 1) * noise

    return batch


def ours(images, process, device):
    supply = Supply(images, None, B, 0, slice(0, B), device)
    ids, step = torch.arange(B, device=device), iter(range(1 << 30))

    def batch():
        now = next(step)
        x_start, _ = supply.batch(now)
        t, flip = torch.randint(0, 1000, (B,), device=device), torch.rand(B, device=device) < 0.5
        return process.q_sample(x_start, t, rng=ops.rng.make_rng(0, now, device), sample_ids=ids, flip=flip)

    return batch


@pytest.mark.parametrize("provider", ["eager", "fastdiff"])
def test_noised_batches(measure, device, provider):
    images = torch.randint(0, 256, (N, *SHAPE)).to(torch.uint8)
    process = GaussianProcess(schedules.linear(1000))
    batch = (ours if provider == "fastdiff" else usual)(images, process, device)
    x_t = batch()
    assert x_t.shape == (B, *SHAPE) and abs(x_t.std() - 1) < 0.5
    measure(f"a noised batch from memory [{B}, 3, 32, 32] uint8", provider, batch)
