"""The choice of a backend."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import _dispatch, rng


def draw():
    return ops.normal((1, 1, 2, 2), rng.make_rng(0), torch.arange(1))


def test_unknown_backends_are_refused():
    message = "backend must be one of cuda, triton, cpu, reference, got 'numpy'"
    with pytest.raises(ValueError, match=message), fastdiff.use_backend("numpy"):
        pass


def test_an_explicit_choice_never_falls_back():
    with fastdiff.use_backend("cuda"), pytest.raises(ValueError) as error:
        draw()
    assert "backend 'cuda' cannot run normal: needs tensors on a CUDA device, got cpu" in str(error.value)
    assert "\n  reference: available" in str(error.value) and "\n  cpu: " in str(error.value)


def test_float64_is_refused_where_there_are_no_kernels():
    with fastdiff.use_backend("triton"), pytest.raises(ValueError, match="has no float64 kernels"):
        ops.group_norm_silu(torch.zeros(1, 2, 2, 2, dtype=torch.float64), 1)


def test_the_automatic_choice_is_the_first_without_a_reason_against_it():
    for op in _dispatch.OPS:
        for device in ("cpu", "cuda", "mps", "xpu"):
            chosen = _dispatch.choose(op, "", device, torch.float32)
            assert _dispatch.reason(op, chosen, device, torch.float32) is None
    assert _dispatch.choose("normal", "", "mps", torch.float32) == "reference"
    expected = "reference" if ops.native.unavailable() else "cpu"
    assert _dispatch.choose("normal", "", "cpu", torch.float32) == expected  # never Triton's interpreter


def test_unknown_ops_are_refused():
    with pytest.raises(ValueError, match="op must be one of"):
        _dispatch.reason("conv", "cpu", "cpu")


def test_contexts_nest_and_end():
    assert _dispatch.requested() == ""
    with fastdiff.use_backend("cpu"):
        with pytest.raises(KeyError), fastdiff.use_backend("reference"):
            assert _dispatch.requested() == "reference"
            raise KeyError
        assert _dispatch.requested() == "cpu"
    assert _dispatch.requested() == ""


def test_other_threads_keep_their_own_choice():
    seen = []
    with fastdiff.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_dispatch.requested()))
        thread.start()
        thread.join()
    assert seen == [""]


@pytest.mark.parametrize(("value", "message"), [("reference", "fine"), ("numpy", "backend must be one of")])
def test_environment(value, message):
    code = (
        "import torch, fastdiff\nfrom fastdiff.ops import rng, _dispatch\n"
        "fastdiff.ops.normal((1, 1), rng.make_rng(0), torch.arange(1)); print('fine', _dispatch.requested())"
    )
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTDIFF_BACKEND": value}, text=True,
                            capture_output=True)  # fmt: skip
    assert message in result.stdout + result.stderr


@pytest.mark.parametrize(("value", "message"), [
    ("baseline", "level baseline"), ("mmx", "SIMD level must be one that runs"),
])  # fmt: skip
def test_simd_level_from_the_environment(value, message):
    if ops.native.unavailable():
        pytest.skip(ops.native.unavailable())
    code = "from fastdiff.ops import native; print('level', native.simd_level())"
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTDIFF_SIMD": value}, text=True,
                            capture_output=True)  # fmt: skip
    assert message in result.stdout + result.stderr


def test_row_columns_are_those_of_the_kernels():
    if ops.native.unavailable():
        pytest.skip(ops.native.unavailable())
    assert ops.native._C.ROW_COLUMNS == ops.rows.WIDTH == len(ops.rows.NAMES) + 1


def test_checks_that_synchronise():
    code = (
        "import torch, fastdiff\nfrom fastdiff.ops import rng\n"
        "fastdiff.ops.normal((1, 1), rng.make_rng(0), torch.tensor([-1]))"
    )
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTDIFF_CHECK": "1"}, text=True,
                            capture_output=True)  # fmt: skip
    assert "sample_ids must be in [0, 4294967296), got [-1]" in result.stderr
