"""Backends that the models' tests run on; one thread, which is the quickest for tiny networks."""

import pytest
import torch

import fastdiff
from fastdiff.ops import _dispatch


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    against = _dispatch.reason("group_norm_silu", request.param, "cpu")
    if against:
        pytest.skip(f"{request.param}: {against}")
    with fastdiff.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
