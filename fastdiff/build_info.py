"""What the build of this installation found and made, as setup.py recorded it in _build.json."""

import functools
import json
from pathlib import Path

_RECORD = Path(__file__).with_name("_build.json")
_NOT_BUILT = "fastdiff was not built here: pip install -e . in its source tree"


@functools.cache
def read():
    """The record of the build, a dict:

    version      of fastdiff when it was built; None: never built
    compiler     C++ compiler and version; None: no C++ kernels
    simd_levels  compiled, widest first
    openmp       whether the kernels use torch's threads
    nvcc         its version; None: no CUDA kernels
    cuda_archs   compute capabilities compiled, such as 90; the last one also as PTX
    reasons      why not, for "cpu", "cuda" and "openmp"
    """
    if _RECORD.exists():
        return json.loads(_RECORD.read_text())
    return {
        "version": None,
        "compiler": None,
        "simd_levels": [],
        "openmp": False,
        "nvcc": None,
        "cuda_archs": [],
        "reasons": {"cpu": _NOT_BUILT, "cuda": _NOT_BUILT},
    }
