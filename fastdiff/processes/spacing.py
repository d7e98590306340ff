"""Which timesteps of a process a shorter run keeps: increasing int64 [S]."""

import operator

import torch


def even(num_timesteps, steps):
    """t_j = round(j * (T - 1) / (S - 1)), j = 0..S-1: first and last are kept; S = 1 keeps t = 0.

    The position is summed up and rounded half to even, as the source's code does, so that fractions near one half fall
    the same way. Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, section 4.
    """
    steps = _steps(num_timesteps, steps)
    stride = (num_timesteps - 1) / max(steps - 1, 1)
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += stride
    return torch.tensor(kept, dtype=torch.int64, device="cpu")


def sections(num_timesteps, counts):
    """T split into as many runs as there are counts, the first T mod n one longer, each spaced evenly (`even`).

    counts: ints, or a text: "250", "10,15,20", or "ddim50": every k-th from 0, k the least stride with exactly 50 of
    them. Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, their code.
    """
    if isinstance(counts, str):
        if counts.startswith("ddim"):
            return _strided(num_timesteps, _integer(counts, counts[4:]))
        counts = [_integer(counts, count) for count in counts.split(",")]
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = num_timesteps // len(counts) + (i < num_timesteps % len(counts))
        if not 0 <= count <= size:
            raise ValueError(f"timesteps must ask for at most {size} steps in section {i}, got {count}")
        if count:
            kept.append(start + even(size, count))
        start += size
    if not kept:
        raise ValueError("timesteps must hold at least one timestep, got none")
    return torch.cat(kept)


def linspace(num_timesteps, steps, *, drop_first=False):
    """t_j = round(j * (T - 1) / (S - 1)), j = 0..S-1: as diffusers' "linspace".

    drop_first: of S + 1 such points the noisiest S, as its multistep solvers have it. Rounds half to even.
    """
    count = _steps(num_timesteps, steps) + drop_first
    points = torch.linspace(0, num_timesteps - 1, count, dtype=torch.float64, device="cpu").round().long()
    return points[1:] if drop_first else points


def leading(num_timesteps, steps, *, offset=0, drop_first=False):
    """t_j = j * (T // S) + offset, j = 0..S-1: as diffusers' "leading" with its steps_offset.

    drop_first: t_j = (j + 1) * (T // (S + 1)) + offset, as its multistep solvers have it.
    """
    count = _steps(num_timesteps, steps) + drop_first
    points = torch.arange(count, device="cpu") * (num_timesteps // count) + offset
    return points[1:] if drop_first else points


def trailing(num_timesteps, steps):
    """t_j = round(T - (S - 1 - j) * T / S) - 1, j = 0..S-1: as diffusers' "trailing"; the last is T - 1."""
    count = _steps(num_timesteps, steps)
    left = torch.arange(count - 1, -1, -1, dtype=torch.float64, device="cpu")
    places = num_timesteps - left * (num_timesteps / count)
    return places.round().long() - 1


def retained(num_timesteps, timesteps):
    """The timesteps that a user means: distinct ints in [0, T) in any order, their number (`even`), or `sections`."""
    if isinstance(timesteps, str):
        return sections(num_timesteps, timesteps)
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
    return torch.tensor(kept, dtype=torch.int64, device="cpu")


def _steps(num_timesteps, steps):
    if isinstance(steps, bool) or not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must be an int in [1, {num_timesteps}], got {steps}")
    return operator.index(steps)


def _strided(num_timesteps, count):
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == count:
            return torch.arange(0, num_timesteps, stride, device="cpu")
    raise ValueError(f"timesteps must be 'ddim' and a number of steps that an integer stride gives, got {count}")


def _integer(text, part):
    if not part.strip().isdecimal():
        raise ValueError(f"timesteps must be a text as '250', '10,15,20' or 'ddim50', got {text!r}")
    return int(part)
