"""Exponential moving averages of a network's weights: several profiles at once."""

import contextlib

import torch

from .profiles import Constant, Power
from .sharding import fill, local

PROFILES = {"constant": Constant, "power": Power}


class EMA:
    """average_k <- d_k * average_k + (1 - d_k) * weight, for each profile k; float32. Buffers are copied.

    The averages of weights that are dealt out among ranks are so too.

    Args:
        model: whose weights; its state_dict names them.
        *profiles: `Constant(decay)` or `Power(sigma_rel)`, or a number: that decay. Samples are drawn with the first.

    Attributes: averages, one dict of tensors a profile; average, the first; updates.
    Source: Ho et al. 2020, section 4 (decay 0.9999); Karras et al., "Analyzing and improving the training dynamics of
    diffusion models", 2024, section 3.1, for power functions.
    """

    def __init__(self, model, *profiles):
        profiles = profiles or (0.9999,)
        self.profiles = tuple(p if isinstance(p, Constant | Power) else Constant(p) for p in profiles)
        self.updates = 0
        weights = model.state_dict()
        self.averages = [{name: _copy(value) for name, value in weights.items()} for _ in self.profiles]

    @property
    def average(self):
        return self.averages[0]

    @torch.no_grad()
    def update(self, model):
        """One pass over the weights, whatever the number of profiles."""
        self.updates += 1
        targets, weights, shares = [], [], []
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                for average in self.averages:
                    average[name].copy_(value)
                continue
            wide = local(value).float()
            for profile, average in zip(self.profiles, self.averages, strict=True):
                targets.append(local(average[name]))
                weights.append(wide)
                shares.append(1 - profile.decay(self.updates))
        _lerp(targets, weights, shares)

    @contextlib.contextmanager
    def applied(self, model, profile=0):
        """The model with an average for weights; its own come back at the end."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.averages[profile])
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self):
        return {"averages": self.averages, "updates": self.updates}

    def load_state_dict(self, state):
        if [each.keys() for each in state["averages"]] != [each.keys() for each in self.averages]:
            raise ValueError("state must hold the averages of this network, got other profiles or names of weights")
        for average, saved in zip(self.averages, state["averages"], strict=True):
            for name, value in saved.items():
                fill(average[name], value)
        self.updates = state["updates"]


def _lerp(targets, weights, shares):
    """targets += shares * (weights - targets), numbers for shares."""
    if len(set(shares)) == 1:
        return torch._foreach_lerp_(targets, weights, shares[0])
    try:
        torch._foreach_lerp_(targets, weights, shares)
    except TypeError:  # before torch 2.8: numbers one at a time
        for share in set(shares):
            chosen = [i for i, each in enumerate(shares) if each == share]
            torch._foreach_lerp_([targets[i] for i in chosen], [weights[i] for i in chosen], share)


def _copy(value):
    return value.detach().float().clone() if value.is_floating_point() else value.detach().clone()
