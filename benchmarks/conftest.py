"""How every benchmark here is run: one case per (op, shape, dtype, layout), one column per provider.

Providers are `eager` (what everybody writes), `compiled` (torch.compile of it), `fastdiff`, and peers where installed.
Each case runs with one thread, pinned to a processor, and with all of them. Compare ratios within one run only.
"""

import contextlib
import os

import pytest
import torch


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
    """measure(group, provider, function): times function() after a warm-up, on a GPU with its synchronisation."""

    def run(group, provider, function):
        benchmark.group = f"{group}, {threads} thread{'s' if threads > 1 else ''}"
        benchmark.extra_info.update(provider=provider, case=group, threads=threads)
        function()

        def synchronised():
            function()
            torch.cuda.synchronize()

        with pinned(threads):
            benchmark(synchronised if device.type == "cuda" else function)

    return run


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


def provided(provider, eager):
    """The eager function itself, or compiled."""
    if provider == "compiled":
        torch._dynamo.reset()
        return torch.compile(eager)
    return eager
