"""The exponential moving average of a network's weights."""

import contextlib

import torch


class EMA:
    """average <- d * average + (1 - d) * weight, d = min(decay, (1 + s) / (10 + s)) after s updates; float32.

    The short memory at first keeps the initial weights out of the average. Buffers are copied.
    Source: Ho et al. 2020, section 4 (decay 0.9999); the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model, decay=0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.decay, self.updates = decay, 0
        self.average = {name: _copy(value) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model):
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        floats, weights = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                floats.append(self.average[name])
                weights.append(value.float())
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(floats, weights, 1 - decay)

    @contextlib.contextmanager
    def applied(self, model):
        """The model with the average for weights; its own come back at the end."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self):
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state):
        if state["average"].keys() != self.average.keys():
            raise ValueError("state must hold the average of this network, got other names of weights")
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.updates = state["updates"]


def _copy(value):
    return value.detach().float().clone() if value.is_floating_point() else value.detach().clone()
