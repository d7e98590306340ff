"""Triton runs in its interpreter where there is no GPU; fixtures that tests of several folders share."""

import os

import pytest
import torch

import fastdiff
from fastdiff.ops import native

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # that run tests at once, by `pytest -n`
if WORKERS > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """At `pytest -n auto`: a worker takes up to two GiB."""
    return min(8, len(os.sched_getaffinity(0)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """What runs the ops of a test of something above them; tests/ops has all backends."""
    if request.param == "cpu" and native.unavailable():
        pytest.skip(native.unavailable())
    with fastdiff.use_backend(request.param):
        yield request.param


@pytest.fixture
def one_thread():
    """The quickest for tiny networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
