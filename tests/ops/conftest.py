"""The backends that can run here, and memory that shows what a kernel forgot to write."""

import contextlib
import importlib.util
import os

import pytest
import torch

import fastdiff
from fastdiff.ops import native
from tests.simt import harness

SAMPLE = {"odd and not square", "odd width, last block discards lanes", "1x1"}  # cases that run in 16 bits everywhere
# Cases and tests that say no more of Triton's kernels than others do, and take its interpreter long.
LONG = {
    "several chunks", "several chunks of tiles", "many channels", "one channel", "sequence", "(2, 12, 4, 4)",
    "cosine100", "not clipped",
    "fixed_small", "fixed_large", "learned", "x0", "v", "score", "1.0", "0.4980392156862745",
    "test_probabilities_of_all_levels_add_up", "test_decoder_is_improved_diffusions",
    "test_bounds_are_improved_diffusions", "test_loss_of_the_process",
}  # fmt: skip
LEVELS = ("avx512bf16", "avx512", "avx2", "baseline")


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        from tests.ops import triton_interpreter

        triton_interpreter.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Triton's interpreter takes a second for what takes others a millisecond: most of its 16-bit matrix is `slow`.

    So is what is LONG.
    """
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        narrow = any(parameters.get(name, torch.float32) is not torch.float32 for name in ("dtype", "model_dtype"))
        if parameters.get("backend") != "triton":
            continue
        named = set(item.callspec.id.split("-"))
        if (narrow and not named & SAMPLE) or (named | {item.originalname}) & LONG:
            item.add_marker(pytest.mark.slow)


@contextlib.contextmanager
def running_on(name):
    """Ops run on the named backend: "cpu-<level>", C++ at that SIMD level; "cuda-simt", CUDA's sources on the CPU."""
    if name == "cuda-simt":
        if harness.unavailable():
            pytest.skip(f"{name}: {harness.unavailable()}")
        with harness.installed(), fastdiff.use_backend("cpu"):
            yield
        return
    backend, _, level = name.partition("-")
    if level:
        try:
            native.set_simd_level(level)
        except (ValueError, AttributeError) as error:
            pytest.skip(f"{name}: {error}")
    try:
        with fastdiff.use_backend(backend):
            yield
    finally:
        if level:
            native.set_simd_level("auto")


def device_of(backend):
    return torch.device("cuda" if torch.cuda.is_available() and backend in ("cuda", "triton") else "cpu")


def on_device(backend):
    """Whether the kernels are a GPU's, wherever they run: no float64, and what is out of range makes its sample NaN."""
    return backend in ("triton", "cuda", "cuda-simt")


BACKENDS = [
    "reference",
    *(f"cpu-{level}" for level in LEVELS),
    "triton",
    "cuda-simt",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Name of the backend that runs every op of the test."""
    if request.param == "triton" and not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    with running_on(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    return device_of(backend)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN, so that an output not wholly written is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
