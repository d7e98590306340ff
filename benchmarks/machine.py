"""What this machine can do at most, measured: how fast it copies memory, and how fast it multiplies matrices.

Times of a run are held against these: an op that moves bytes against the copy, a network against the product.
"""

import statistics
import time

import torch
from torch.nn import functional as F

COPIED = 1 << 26  # bytes, more than any cache here holds
ROUNDS = 7


def seconds(function, rounds=ROUNDS):
    """Median of a few calls after one that warms up."""
    function()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copy_gbps():
    """Bytes read and written each second, in 10^9."""
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    return 2 * COPIED / seconds(lambda: target.copy_(source)) / 1e9


def product_gflops(n=768):
    """float32 multiplications and additions each second, in 10^9: the better of a product of matrices and the same as a
    1x1 convolution, for neither of torch's libraries is the quicker one on every processor."""
    a, b = torch.ones(n, n), torch.ones(n, n)
    x = torch.ones(1, n, 16, n // 16).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(n, n, 1, 1)
    best = min(seconds(lambda: a @ b), seconds(lambda: F.conv2d(x, weight)))
    return 2 * n**3 / best / 1e9


def peaks(threads):
    """{"copy_gbps": ..., "product_gflops": ...} with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return {"copy_gbps": copy_gbps(), "product_gflops": product_gflops()}
    finally:
        torch.set_num_threads(before)
