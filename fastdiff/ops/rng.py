"""The counter RNG's inputs: a draw is a function of (seed, draw, sample_id, stream, element) and of nothing else."""

import operator

import torch

# Counter streams, one per use; mirrored by enum Stream of csrc/params.h. Dropout layer k uses DROPOUT + k.
INITIAL = 0
STEP = 1
KNOWN = 2
TRAINING = 3
TIMESTEPS = 4
FLIPS = 5
LABELS = 6
PROBES = 32  # these three are drawn by no kernel of their own
DEQUANTIZATION = 33
SELF_CONDITION = 34
DROPOUT = 256


def make_rng(seed, draw=0, device=None):
    """rng = (seed bits, draw), the int64 tensor [2] that every drawing op takes.

    seed: int in [-2^63, 2^64), wrapped to 64 bits. draw: int in [0, 2^32): the plan's row in sampling, the global
    step in training. Ints of NumPy, and tensors that hold one, count. TypeError or ValueError that names the argument.
    """
    seed, draw = _whole("seed", seed), _whole("draw", draw)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")
    if not 0 <= draw < 2**32:
        raise ValueError(f"draw must be in [0, 2**32), got {draw}")
    signed = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([signed, draw], dtype=torch.int64, device=device)


def _whole(name, value):
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
