"""Numbers recorded by running improved-diffusion (commit 1bc7bbb) and diffusers 0.42.1, and the former's network."""

import json
from pathlib import Path

import numpy as np
import torch


def load(name):
    """Arrays of tests/data/<name>.npz as tensors, JSON texts parsed."""
    with np.load(Path(__file__).parents[1] / "data" / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file}
    texts = {key: json.loads(str(array)) for key, array in arrays.items() if array.dtype.kind == "U"}
    return {key: torch.as_tensor(array) for key, array in arrays.items() if key not in texts} | texts


def network(constants, prediction, variance="fixed_small"):
    """out_c = A_c x_c + g (b_c cos(t / 50) + 0.1 tanh(x_{c+1})), (A, g) = (a, 1) for eps, (a2, 0.01) for x0 and xprev.

    For learned variances C channels d + p_c tanh(x_c) + q_c sin(t / 50) follow, d = -4 for learned, 0.1 for
    learned_range. constants: maps a, a2, b, p, q to [C]. Returns model(x, t), which computes in x's dtype.
    """
    scale = 1.0 if prediction == "eps" else 0.01
    offset = {"learned": -4.0, "learned_range": 0.1}.get(variance)

    def model(x, t):
        A, b = (constants[name].to(x.dtype).view(1, -1, 1, 1) for name in ("a" if scale == 1.0 else "a2", "b"))
        t = t.to(x.dtype).view(-1, 1, 1, 1) / 50
        mean = A * x + scale * (b * torch.cos(t) + 0.1 * torch.tanh(x.roll(-1, 1)))
        if offset is None:
            return mean
        p, q = (constants[name].to(x.dtype).view(1, -1, 1, 1) for name in ("p", "q"))
        return torch.cat([mean, offset + p * torch.tanh(x) + q * torch.sin(t)], 1)

    return model


def error(value, reference):
    """Largest error of a sample divided by the largest magnitude of its reference."""
    value, reference = value.double().flatten(1), reference.double().flatten(1)
    return ((value - reference).abs().amax(1) / reference.abs().amax(1)).max().item()
