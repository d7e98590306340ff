"""Backends that the samplers' tests run on."""

import pytest

import fastdiff
from fastdiff.ops import _dispatch


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    against = _dispatch.reason("reverse_step", request.param, "cpu")
    if against:
        pytest.skip(f"{request.param}: {against}")
    with fastdiff.use_backend(request.param):
        yield request.param
