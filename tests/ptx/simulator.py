"""ptxsim, an interpreter of PTX: FASTDIFF_PTXSIM names a copy of it. And what a run of kernels on it came to."""

import ctypes
import functools
import importlib
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
WARP = 32
INOUT = {"history"}  # what a call reads and may write


def unavailable():
    """Why nothing can be run; None where it can."""
    place = os.environ.get("FASTDIFF_PTXSIM")
    if not place:
        return "FASTDIFF_PTXSIM does not name a copy of ptxsim"
    return None if Path(place, "ptxsim.py").is_file() else f"FASTDIFF_PTXSIM has no ptxsim.py: {place}"


@functools.cache
def load(name="ptxsim"):
    """A module of ptxsim; what it compiles, once, stays in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("PTXSIM_BUILD", str(Path(cache, "fastdiff", "ptxsim")))
    place = str(Path(os.environ["FASTDIFF_PTXSIM"]).resolve())
    if place not in sys.path:
        sys.path.append(place)
    return importlib.import_module(name)


@dataclass
class Run:
    """Of all launches of a call: instructions that lanes had issued, findings, kernels."""

    harmless: frozenset = frozenset()  # kinds of reports that are no findings
    instructions: int = 0
    findings: list = field(default_factory=list)
    kernels: list = field(default_factory=list)
    written: set = field(default_factory=set)  # addresses of buffers that an earlier launch wrote to

    def add(self, kernel, stats, buffers):
        """buffers: by the name of their parameter."""
        self.instructions += WARP * stats["warp_instructions"]
        self.kernels.append(kernel)
        found = [each for each in stats.reports if each["kind"] not in self.harmless]
        self.findings += [f"{kernel}: {each['kind']}: {each['text']}" for each in found]
        wrote = {name for name, counters in stats["buffers"].items() if counters["bytes_written"]}
        self.written |= {each.address for name, each in buffers.items() if name in wrote}


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel may reach, a tensor's. writable: and may write; not before it reads it, unless `inout`."""

    name: str
    address: int
    count: int  # bytes
    writable: bool
    inout: bool

    @classmethod
    def of(cls, name, tensor, writable):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(name, tensor.data_ptr(), (last + 1) * tensor.element_size(), writable, name in INOUT)

    def argument(self, run):
        """As ptxsim takes it: what may not be written is read-only, an output that nothing wrote yet is `Out`."""
        array = np.frombuffer((ctypes.c_char * self.count).from_address(self.address), np.uint8)
        array.flags.writeable = self.writable
        fresh = self.writable and not self.inout and self.address not in run.written
        return load().Out(array) if fresh else array


def launch(module, kernel, grid, block, arguments, shared):
    """ptxsim's statistics of one launch; its findings but those that end a run are in .reports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.launch(kernel, grid, block, arguments, shared_bytes=shared, on_race="ignore", on_uninit="ignore")
