"""Dropout as a part of the norm before it, its masks from the counter RNG."""

import torch
from torch import nn


class Dropout(nn.Dropout):
    """The rate and the number of a dropout that its norm carries out; `layer` tells its masks from the others'."""

    layer = 0

    def options(self, x, counters=None):
        """What the norm is called with: counters = (rng, sample_ids), drawn where there are none."""
        if not (self.training and self.p > 0):
            return {}
        rng, sample_ids = drawn(x) if counters is None else counters
        return dict(dropout=self.p, rng=rng, sample_ids=sample_ids, layer=self.layer)


def drawn(x):
    """(rng, sample_ids) from torch's generator of x's device, for the B samples of x."""
    return torch.randint(2**32, (2,), device=x.device), torch.arange(x.shape[0], device=x.device)


def number(network):
    """Gives every dropout of the network a stream of its own."""
    for layer, dropout in enumerate(module for module in network.modules() if isinstance(module, Dropout)):
        dropout.layer = layer
