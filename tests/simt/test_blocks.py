"""Block sizes of the CUDA kernels: of shape, layout and element size alone, within what sm_80 and later allow."""

import pytest
import torch

from benchmarks.static import cases
from benchmarks.static.cases import group_norm_silu, group_norm_silu_backward, maker, rms_norm_silu
from fastdiff.ops import native
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

MOST_SHARED = 163 << 10  # bytes that a block of sm_80 may ask for
SIZES = {  # (op, variant of benchmarks/static/cases.py, channels last): threads of a block, float32 and bfloat16
    (group_norm_silu, "", False): (64, 64),
    (group_norm_silu, "", True): (128, 256),
    (group_norm_silu, "large", False): (256, 256),
    (group_norm_silu_backward, "", False): (128, 128),
    (group_norm_silu_backward, "large", True): (512, 512),
    (rms_norm_silu, "", True): (256, 256),
}
EACH = [
    pytest.param(case, dtype, last, variant, threads, id=f"{case.__name__} {variant} {dtype} {last}")
    for (case, variant, last), both in SIZES.items()
    for dtype, threads in zip((torch.float32, torch.bfloat16), both, strict=True)
]


def launches(case):
    """Of one block each."""
    with harness.installed(), harness.only_blocks(0), harness.counted() as launched:
        getattr(native, case.op)(*case.arguments(maker("cpu")))
    return launched


@pytest.mark.parametrize(("case", "dtype", "last", "variant", "threads"), EACH)
def test_a_shape_has_its_block(case, dtype, last, variant, threads):
    first = launches(case(dtype, last, variant))[0]
    assert first["block"] == (threads, 1, 1)


@pytest.mark.parametrize("name", [name for name in cases.CASES if " f16 " not in name])
def test_blocks_are_warps_and_fit(name):
    for launch in launches(cases.CASES[name]):
        threads = launch["block"][0]
        assert threads % 32 == 0 and 0 < threads <= 1024 and launch["block"][1:] == (1, 1)
        assert launch["shared"] <= MOST_SHARED
