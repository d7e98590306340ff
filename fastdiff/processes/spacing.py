"""Which timesteps of a process a shorter run keeps: increasing int64 [S]."""

import operator

import torch


def even(num_timesteps, steps):
    """t_j = round(j * (T - 1) / (S - 1)), j = 0..S-1: first and last are kept; S = 1 keeps t = 0.

    The position is summed up and rounded half to even, as the source's code does, so that fractions near one half fall
    the same way. Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 4.
    """
    if isinstance(steps, bool) or not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be an int in [1, {num_timesteps}], got {steps}")
    stride = (num_timesteps - 1) / max(steps - 1, 1)
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += stride
    return torch.tensor(kept, dtype=torch.int64)


def retained(num_timesteps, timesteps):
    """The timesteps that a user means: distinct ints in [0, T) in any order, or one int, their number (`even`)."""
    if hasattr(timesteps, "tolist"):
        timesteps = timesteps.tolist()
    if isinstance(timesteps, int):
        return even(num_timesteps, timesteps)
    try:
        kept = sorted(operator.index(t) for t in timesteps)
    except TypeError:
        raise TypeError(f"timesteps must be ints, or the number of them, got {timesteps!r}") from None
    if not kept:
        raise ValueError("timesteps must hold at least one timestep, got none")
    if kept[0] < 0 or kept[-1] >= num_timesteps:
        raise ValueError(f"timesteps must be in [0, {num_timesteps}), got {kept[0] if kept[0] < 0 else kept[-1]}")
    if len(set(kept)) < len(kept):
        raise ValueError(f"timesteps must be distinct, got {kept}")
    return torch.tensor(kept, dtype=torch.int64)
