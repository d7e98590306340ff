"""The processes of a distributed run, as torchrun starts them."""

import contextlib
import os

import torch
import torch.distributed as dist


class Ranks:
    """This process' place among all: rank of world. Of a process that runs alone: 0 of 1.

    `part(B)` is the slice of a global batch of B that is this rank's, the r-th of `world` equal parts.
    """

    def __init__(self):
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def first(self):
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def part(self, batch_size):
        share = batch_size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def wait(self):
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def any(self, flag):
        """Whether any rank's flag is set; the same on all."""
        if self.world == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(int(flag), device=device)
        dist.all_reduce(total)
        return bool(total.item())

    def mean(self, value):
        """A tensor's mean over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value


def launched():
    """Whether torchrun started this process among others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def joined(device):
    """The process group of torchrun's environment, over NCCL on a GPU and gloo else; yields this process' device.

    A process that torchrun did not start is alone.
    """
    device = torch.device(device)
    if not launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
