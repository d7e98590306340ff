"""What a network is told beside x and t: labels, or any keywords."""

import torch

LABELS = ""  # the key of a condition that is not a dict


class Condition:
    """The network's further arguments of n samples, of which a batch takes its own.

    Args:
        condition: None; labels or another tensor, an int or a sequence of n ints, passed as the third argument; or a
            dict of keywords. Tensors are [n, ...], or [1, ...] for all; floats go to the network's dtype. Whatever else
            is in a dict is passed as it is.
        n: number of samples.
        uncond: of the unconditional half of a guided call, in the same form; keywords not in it are those of the
            conditional half. None: no such half.
    """

    def __init__(self, condition, n, uncond=None):
        cond = _checked("condition", condition, n)
        self.halves = [cond]
        if uncond is not None:
            if condition is None:
                raise ValueError("condition must be given where guidance is, got None")
            other = _checked("uncond", uncond, n)
            unknown = other.keys() - cond.keys()
            if unknown:
                raise ValueError(f"uncond must hold keywords of condition, got {sorted(unknown)[0]!r}")
            self.halves = [{**cond, **other}, cond]

    def rows(self, positions, device, dtype):
        """{key: tensor [B or 2B, ...] of the samples at these positions (int64 [B]), or the value that all share}."""
        return {key: self._rows(key, positions, device, dtype) for key in self.halves[-1]}

    def _rows(self, key, positions, device, dtype):
        values = [half[key] for half in self.halves]
        if not any(isinstance(value, torch.Tensor) for value in values):
            if any(value is not values[0] and value != values[0] for value in values):
                raise ValueError(f"uncond's {key} must be a tensor, or that of condition, got {values[0]!r}")
            return values[-1]
        rows = []
        for value in values:
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"uncond's {key} must be a tensor as condition's is, got {type(value).__name__}")
            taken = take(value, positions).to(device, non_blocking=True)
            rows.append(taken.to(dtype) if dtype is not None and taken.is_floating_point() else taken)
        if rows[0].shape != rows[-1].shape:
            name, (uncond, cond) = f"uncond's {key}" if key else "uncond", (list(row.shape[1:]) for row in rows)
            raise ValueError(f"{name} must have samples of shape {cond} as condition has, got {uncond}")
        return torch.cat(rows)


def arguments(rows):
    """(positional, keywords) of a call with these rows."""
    return tuple(rows[key] for key in rows if key == LABELS), {key: rows[key] for key in rows if key != LABELS}


def take(value, positions):
    """[B, ...]: the samples at these positions of [n, ...], or B times the one of [1, ...]."""
    if len(value) == 1:
        return value.expand(len(positions), *value.shape[1:])
    return value.index_select(0, positions.to(value.device, non_blocking=True))


def per_sample(name, value, n):
    """A tensor [n or 1, ...] of what the user gave."""
    if value.dim() == 0 or len(value) not in (1, n):
        raise ValueError(f"{name} must have n = {n} samples, or 1 for all, got shape {list(value.shape)}")
    return value.detach()


def _checked(name, condition, n):
    """{key: value}, tensors as [n or 1, ...]."""
    if condition is None:
        return {}
    if not isinstance(condition, dict):
        try:
            condition = {LABELS: torch.as_tensor(condition)}
        except (TypeError, ValueError, RuntimeError):
            kind = type(condition).__name__
            raise TypeError(f"{name} must be labels, a tensor or a dict of keywords, got {kind}") from None
        if condition[LABELS].dim() == 0:
            condition = {LABELS: condition[LABELS][None]}
    return {
        key: per_sample(f"{name}'s {key}" if key else name, value, n) if isinstance(value, torch.Tensor) else value
        for key, value in condition.items()
    }
