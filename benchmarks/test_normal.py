"""Standard normals from a counter against torch's generator."""

import pytest
import torch

from fastdiff import ops
from fastdiff.ops import rng


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (1, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("provider", ["eager", "fastdiff"])
def test_normal(measure, device, provider, shape):
    key, ids = rng.make_rng(0, 0, device), torch.arange(shape[0], device=device)
    functions = {
        "eager": lambda: torch.randn(shape, device=device),
        "fastdiff": lambda: ops.normal(shape, key, ids),
    }
    measure(f"normal {list(shape)} float32", provider, functions[provider], same=functions[provider])
