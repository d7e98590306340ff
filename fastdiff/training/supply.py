"""Where the images of a step come from: the device itself where they fit, else workers that read ahead."""

import torch
from torch.utils.data import DataLoader, Dataset

from .timesteps import Batches

_SHARE = 4  # images may take this part of a GPU's free memory


class Supply:
    """images and labels of step s for this rank, on its device: `batch(step)`, called with growing steps.

    Args:
        images: uint8 [N, C, H, W] in memory, or read from the disk as they are needed.
        labels: int64 [N] or None.
        batch_size: of all ranks together.
        part: slice of the global batch.
        workers: processes that read ahead where the images do not fit on the device; 0: none, read when needed.
    """

    def __init__(self, images, labels, batch_size, seed, part, device, start=0, workers=2):
        self.images, self.labels, self.device, self.part = images, labels, device, part
        self.batches = Batches(len(images), batch_size, seed)
        self.on_device = device.type == "cpu" or images.nbytes * _SHARE <= torch.cuda.mem_get_info(device)[0]
        if self.on_device:
            self.images, self.labels = images.to(device), labels if labels is None else labels.to(device)
        else:
            self._ahead = iter(self._loader(start, workers))

    def batch(self, step):
        """(uint8 [b, C, H, W], int64 [b] or None)."""
        if not self.on_device:
            images, labels = (value.to(self.device, non_blocking=True) for value in next(self._ahead))
            return images, None if self.labels is None else labels
        places = self.batches.positions(step)[self.part].to(self.device)
        return self.images[places], None if self.labels is None else self.labels[places]

    def _loader(self, start, workers):
        steps = _Steps(self.batches, self.part, start)
        images = _Images(self.images, self.labels)
        return DataLoader(images, batch_sampler=steps, pin_memory=True, num_workers=workers)


class _Images(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.images[place], 0 if self.labels is None else self.labels[place]


class _Steps:
    """The places of this rank's images, step after step, without end."""

    def __init__(self, batches, part, start):
        self.batches, self.part, self.start = batches, part, start

    def __iter__(self):
        step = self.start
        while True:
            yield self.batches.positions(step)[self.part].tolist()
            step += 1
