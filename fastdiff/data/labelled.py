"""What every source of data gives."""

from typing import NamedTuple

import torch


class Labelled(NamedTuple):
    """Images and, where the source knows them, their classes."""

    images: torch.Tensor  # uint8 [N, C, H, W], C 1 or 3
    labels: torch.Tensor | None = None  # int64 [N]
    classes: tuple[str, ...] | None = None  # the name of each label, where there are names


def checked_labels(labels, count):
    """int64 [N] of an array of labels: ints of at least 0, one an image."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.dtype is torch.bool or labels.shape != (count,):
        raise ValueError(f"labels must be {count} ints, got {labels.dtype} of shape {list(labels.shape)}")
    if count and labels.min() < 0:
        raise ValueError(f"labels must be at least 0, got {labels.min().item()}")
    return labels.to(torch.int64)
