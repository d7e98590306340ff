"""Triton runs in its interpreter where there is no GPU; fixtures that tests of several folders share."""

import os

import pytest
import torch

import fastdiff
from fastdiff.ops import native

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


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
