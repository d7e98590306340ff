"""The features that generated digits are measured in, and the digits that nobody trained on."""

import torch
from torch import nn
from torch.nn import functional as F

from ..data.sources import digits

FEATURES = 32


def split():
    """(training images, their labels, held-out images, their labels): every sixth digit is held out, 299 of 1797."""
    images, labels = digits()
    held_out = torch.arange(len(images)) % 6 == 5
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


class DigitFeatures(nn.Module):
    """uint8 [N, 1, 8, 8] -> [N, 32]: the last layer but one of a classifier of two convolutions, 43,000 weights.

    `trained()` makes it, the same weights each time on one machine, in seconds.
    """

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 64, 3, stride=2, padding=1), nn.SiLU()
        )
        self.penultimate, self.last = nn.Linear(64 * 16, FEATURES), nn.Linear(FEATURES, 10)

    def forward(self, images):
        h = self.convolutions(images.float() / 127.5 - 1)
        return F.silu(self.penultimate(h.flatten(1)))

    @classmethod
    def trained(cls, epochs=20, batch_size=64, seed=0):
        images, labels, _, _ = split()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = cls()
            optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
            for _ in range(epochs):
                for rows in torch.randperm(len(images)).split(batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(network.last(network(images[rows])), labels[rows]).backward()
                    optimizer.step()
        return network.eval().requires_grad_(False)

    def accuracy(self):
        """On the held-out digits."""
        _, _, images, labels = split()
        return (self.last(self(images)).argmax(1) == labels).double().mean().item()
