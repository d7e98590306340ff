"""What is timed is first compared with the plain PyTorch definition."""

import pytest
import torch

from benchmarks.conftest import assert_defined
from fastdiff.ops import _dispatch


def differing(by):
    return lambda: (torch.ones(3), torch.tensor([2.0]) + by * (_dispatch.requested() == "reference"))


def test_a_result_that_is_not_the_definitions_is_not_timed():
    with pytest.raises(AssertionError, match="off by"):
        assert_defined(differing(1e-3))


def test_rounding_is_allowed():
    assert_defined(differing(1e-5))


def test_a_result_of_another_dtype_is_not_timed():
    with pytest.raises(AssertionError):
        assert_defined(lambda: torch.ones(2, dtype=torch.float16 if _dispatch.requested() else torch.float32))
