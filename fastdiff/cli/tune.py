"""Times block sizes of the Triton kernels on this machine's GPU and keeps the fastest.

The table is written to the user's cache (FASTDIFF_HOME, else XDG_CACHE_HOME/fastdiff, else ~/.cache/fastdiff), a file
for each GPU, and read when that GPU is first used. Without one the built-in table serves. Delete the file to go back.
"""

import torch

import fastdiff
from fastdiff import files, ops
from fastdiff.ops import rng

IMAGES = {4096: (256, 3, 32, 32)}  # work for a row, by the elements that it is for
LARGE_IMAGES = (64, 4, 64, 64)
GROUPS = 32
ACTIVATIONS = {4096: (32, 128, 32, 32), 8192: (16, 128, 32, 32), 16384: (8, 128, 64, 64)}
LARGE_ACTIVATION = (2, 256, 128, 128)
LAST = {("group_norm_silu_backward", 16384): (16, 128, 32, 32)}  # rows that channels_last images alone take
PIXELS = (16, 256, 32, 32)


def add_arguments(parser):
    parser.add_argument("--dry-run", action="store_true", help="print the table, write nothing")


def main(arguments):
    if not torch.cuda.is_available():
        raise ValueError("fastdiff tune must run where PyTorch finds a CUDA GPU, got none; the built-in table serves")
    from triton.testing import do_bench

    from fastdiff.ops.triton import blocks

    gpu = torch.cuda.get_device_name()
    keep(blocks, gpu, lambda row: do_bench(work(row, "cuda")), arguments.dry_run)


def keep(blocks, gpu, time, dry_run=False):
    """Tunes by time(row) and writes what came of it."""
    table = blocks.tuned(time)
    for before, row in zip(blocks.BUILT_IN, table, strict=True):
        print(f"{row}" + ("" if row == before else f", before {before.block}, {before.per_warp}"))
    if dry_run:
        return
    file = blocks.path(gpu)
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(file, shared=True) as part:
        part.write_text(blocks.to_json(gpu, table))
    print(f"written to {file}")


def work(row, device, batch=None):
    """A function that runs the kernels which take the row. batch: samples, if not a GPU's worth."""
    shape = shape_of(row)
    shape = (batch or shape[0], *shape[1:])
    if row.kind == "image":
        return noising(shape, device)
    layout = torch.channels_last if (row.kind, row.most) in LAST else torch.contiguous_format
    x = torch.randn(shape, device=device).to(torch.bfloat16, memory_format=layout)
    x.requires_grad_(row.kind.endswith("backward"))
    norm = ops.rms_norm_silu if row.kind.startswith("rms") else lambda x: ops.group_norm_silu(x, GROUPS)
    with fastdiff.use_backend("triton"):
        if not x.requires_grad:
            return on_triton(lambda: norm(x))
        y = norm(x)
    return lambda: torch.autograd.grad(y, x, x.detach(), retain_graph=True)


def shape_of(row):
    if row.kind == "image":
        return IMAGES.get(row.most, LARGE_IMAGES)
    if row.kind.startswith("rms"):
        return PIXELS
    return LAST.get((row.kind, row.most)) or ACTIVATIONS.get(row.most, LARGE_ACTIVATION)


def noising(shape, device):
    x, t = torch.randn(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
    table = torch.ones(1, device=device)
    key, ids = rng.make_rng(1, device=device), torch.arange(shape[0], device=device)
    return on_triton(lambda: ops.q_sample(x, t, table, table, rng=key, sample_ids=ids))


def on_triton(function):
    def run():
        with fastdiff.use_backend("triton"):
            return function()

    return run
