"""How every benchmark here is run: one case per (op, shape, dtype, layout), one column per provider.

Providers are `eager` (what everybody writes), `compiled` (torch.compile of it), `fastdiff`, and peers where installed.
Each case runs with one thread, pinned to a processor, and with all of them. Compare ratios within one run only.
A `heavy` case, if a call of it takes longer than `LONG`, is timed three times.
Where a case says how many bytes it must move, or how many FLOPs it is usually done in, the report tells the share of
what this machine was measured to do (benchmarks/machine.py).
"""

import contextlib
import os
import time

import pytest
import torch

import fastdiff

from . import machine
from .device_clock import DeviceClock

LONG = 2  # seconds
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of the largest element


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.benchmark(timer=DeviceClock()))


@pytest.fixture(params=[1, None], ids=["one-thread", "all-threads"])
def threads(request):
    """Number of threads of this run."""
    if request.param is None and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("this machine has one processor")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or len(os.sched_getaffinity(0)))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def measure(benchmark, threads, device):
    """measure(group, provider, function): times function() after a warm-up, on a GPU by CUDA events.

    same: a call of ours that does what function() does; what it gives is first asserted to be what the plain PyTorch
    definition gives. moved: bytes, of a case that is about memory; flops: of one that is about arithmetic.
    """

    def run(group, provider, function, moved=None, flops=None, same=None):
        if same and provider.startswith("fastdiff"):
            assert_defined(same)
        benchmark.group = f"{group}, {threads} thread{'s' if threads > 1 else ''}"
        benchmark.extra_info.update(provider=provider, case=group, threads=threads, moved=moved, flops=flops)
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        long = took > LONG and "heavy" in benchmark.name  # others may have been compiled just now
        with pinned(threads):
            if long:
                benchmark.pedantic(function, rounds=3)
            else:
                benchmark(function)

    return run


def assert_defined(call):
    """What a call of ours gives, a tensor or several, is what the reference backend gives of the same."""
    found = call()
    with fastdiff.use_backend("reference"):
        expected = call()
    pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
    for ours, defined in pairs:
        assert ours.dtype is defined.dtype and ours.shape == defined.shape
        error = (ours.double() - defined.double()).abs().max()
        assert error <= TOLERANCES[ours.dtype] * defined.double().abs().max(), f"off by {error:.3g}"


@contextlib.contextmanager
def pinned(threads):
    allowed = os.sched_getaffinity(0)
    if threads == 1:
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if config.getoption("benchmark_json") and not machine_info["gpu"]:
        counts = {1, len(os.sched_getaffinity(0))}
        machine_info["peaks"] = {str(threads): machine.peaks(threads) for threads in counts}


def provided(provider, eager):
    """The eager function itself, or compiled."""
    if provider == "compiled":
        torch._dynamo.reset()
        return torch.compile(eager)
    return eager
