"""Many samples, shared out among processes and cut off at any moment: fixed micro-batches, each a file of its own.

Micro-batch i holds the samples i * batch_size and following; process r of R makes those with i mod R = r that are not
there yet. A file is written under another name, synced and renamed, so that it is whole or not there: however often and
with however many processes a run is started, every sample is made once and has the same bytes.
"""

import contextlib
import datetime
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import whole

SETTINGS = "settings.json"


class Ranks(NamedTuple):
    """This process among those that torchrun started."""

    rank: int
    world: int
    local: int  # among those on this machine

    def barrier(self):
        """Waits until every process has come here."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()


@contextlib.contextmanager
def ranks():
    """`Ranks` of torchrun's environment, or one process alone; they only ever wait for one another, through gloo."""
    rank, world, local = (int(os.environ.get(name, one)) for name, one in _ENVIRONMENT)
    if world == 1:
        yield Ranks(0, 1, local)
        return
    import torch.distributed as distributed

    # A process waits at the end for as long as another has micro-batches left.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield Ranks(rank, world, local)
    finally:
        distributed.destroy_process_group()


_ENVIRONMENT = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


class Parts:
    """The micro-batches of a run of n samples, in a directory.

    Args:
        folder: the directory; `begin` makes it.
        n: number of samples.
        batch_size: samples in a micro-batch, the last one being shorter.
        settings: all that decides the samples, as JSON can hold it: what a run to go on with must agree in.
    """

    def __init__(self, folder, n, batch_size, settings):
        for name, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value}")
        self.folder, self.n, self.batch_size = Path(folder), n, batch_size
        self.settings = json.loads(json.dumps({**settings, "n": n, "batch_size": batch_size}))

    def __len__(self):
        return -(-self.n // self.batch_size)

    def begin(self, resume):
        """Makes the directory, or takes that of a run which was cut off. By one process, before any other goes on."""
        path = self.folder / SETTINGS
        if path.exists() and not resume:
            left = f"got {str(self.folder)!r} of a run cut off (resume goes on with it)"
            raise FileExistsError(f"out must be new, {left}")
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(path, shared=True) as part:
                part.write_text(json.dumps(self.settings, indent=2))
            return
        before = json.loads(path.read_text())
        for name in sorted({*before, *self.settings}):
            old, new = before.get(name), self.settings.get(name)
            if old != new:
                raise ValueError(f"{name} must be as in the run to resume, {old!r}, got {new!r}")

    def ids(self, index):
        """The samples of a micro-batch."""
        return range(index * self.batch_size, min((index + 1) * self.batch_size, self.n))

    def of(self, rank, world):
        """Indices of the micro-batches that are this process' to make."""
        return [index for index in range(rank, len(self), world) if not self.path(index).exists()]

    def path(self, index):
        return self.folder / f"{index:06d}.npy"

    def save(self, index, array):
        """The samples of a micro-batch, an array [its size, ...]."""
        if len(array) != len(self.ids(index)):
            raise ValueError(f"array must hold {len(self.ids(index))} samples, got {len(array)}")
        with whole(self.path(index), shared=True) as part, open(part, "wb") as file:
            np.save(file, array)

    def load(self, index):
        return np.load(self.path(index))

    def remove(self):
        """Removes the directory, what makes it a run to resume last."""
        for index in range(len(self)):
            self.path(index).unlink(missing_ok=True)
        shutil.rmtree(self.folder)
