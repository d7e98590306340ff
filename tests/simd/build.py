"""fastdiff._C whose AVX-512 levels, or whose NEON, are emulated by AVX2: what an x86-64 processor has not, it runs."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = "tests/simd/include"
AVX2 = "-mavx2 -mfma -mf16c"
LEVELS = {
    "x86_64": {
        "avx512bf16": f"{AVX2} -DEMULATED_BF16 -include {INCLUDE}/avx512.h",
        "avx512": f"{AVX2} -include {INCLUDE}/avx512.h",
        "avx2": AVX2,
        "baseline": "",
    },
    "aarch64": {"baseline": f"{AVX2} -I {INCLUDE} -include {INCLUDE}/arm_neon.h"},
}


def setup_script():
    spec = importlib.util.spec_from_file_location("fastdiff_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(machine):
    """Path of the library that takes itself for built for `machine`, built where its sources have changed."""
    build = setup_script()
    build.LEVELS.update(LEVELS[machine])
    build.PRECOMPILED = ()
    cxx = build.find_cxx(os.environ)
    cxx.machine = machine
    build.CXX_FLAGS += " -w '-D__builtin_cpu_supports(feature)=true'"
    ninja = build.NinjaFile(ROOT, cxx, None)
    ninja.directory = Path("build") / f"emulated-{machine}"
    ninja.path = ninja.directory / "build.ninja"
    ninja.library = ninja.directory / ninja.library.name
    with build.locked(ROOT / ninja.directory):
        ninja.write()
        ninja.run(build.jobs(os.environ))
    return ROOT / ninja.library
