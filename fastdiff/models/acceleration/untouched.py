"""What a graph cannot repeat of a forward that was run once: attributes that it set, random numbers that it drew."""

import pickle
import random

import numpy as np
import torch

# Of each the reading and the setting of its state, which is in bytes that tell whether it is the same.
_GENERATORS = (
    (lambda: torch.get_rng_state().numpy(), lambda state: torch.set_rng_state(torch.from_numpy(state))),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
)


class Untouched:
    """The attributes of the modules below one, what lists and dicts among them hold, and the CPU's generators."""

    def __init__(self, module):
        self.attributes = [(vars(each), vars(each).copy()) for each in module.modules()]
        named = [pair for _, names in self.attributes for pair in names.items() if isinstance(pair[1], list | dict)]
        self.held = [(name, value, value.copy()) for name, value in named]
        self.states = [get() for get, _ in _GENERATORS]

    def restore(self):
        """Puts all back; returns (names of attributes that had been changed, whether numbers had been drawn)."""
        changed = [name for now, before in self.attributes for name in _put_back(now, before)]
        changed += [name for name, now, before in self.held if _put_back(now, before)]
        drawn = False
        for state, (get, put) in zip(self.states, _GENERATORS, strict=True):
            if pickle.dumps(get()) != pickle.dumps(state):
                drawn = True
                put(state)
        return changed, drawn


def _put_back(now, before):
    """The names of what differs, now a list or dict to be as before."""
    a, b = (dict(enumerate(each)) if isinstance(each, list) else each for each in (now, before))
    changed = [name for name in {**a, **b} if name not in a or name not in b or a[name] is not b[name]]
    if changed:
        now.clear()
        now.extend(before) if isinstance(now, list) else now.update(before)
    return changed
