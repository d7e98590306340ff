"""What every source of data gives."""

from typing import NamedTuple

import numpy as np
import torch


class Labelled(NamedTuple):
    """Images and, where the source knows them, their classes."""

    images: torch.Tensor  # uint8 [N, C, H, W], C 1 or 3
    labels: torch.Tensor | None = None  # int64 [N]
    classes: tuple[str, ...] | None = None  # the name of each label, where there are names


def checked_labels(labels, count):
    """int64 [N] of an array of labels: ints of at least 0, one an image."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"labels must be {count} ints, got {labels.dtype} of shape {list(labels.shape)}")
    if count and not 0 <= labels.min() <= labels.max() < 2**63:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"labels must be at least 0 and below 2**63, got {outside}")
    return torch.from_numpy(labels.astype(np.int64))
