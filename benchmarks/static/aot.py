"""Triton's kernels, compiled ahead of time.

The host functions run on meta tensors, and Triton with a driver that knows an architecture and no device: so kernels
are specialised as a launch would, and never launched. That is done in a process of its own, where Triton does not
interpret.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from . import kept, ptx
from .cases import CASES, maker

ROOT = Path(__file__).resolve().parents[2]


def unavailable():
    """Why there are no rows; None where there are."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def version():
    return importlib.metadata.version("triton")


def representative():
    """Names of the cases to compile: float16 is to Triton what bfloat16 is."""
    return [name for name, case in CASES.items() if case.dtype is not torch.float16]


def tasks(archs, cases=None):
    """Functions that each return a row for every specialisation of a kernel, under the first case that launches it."""
    names = list(cases or representative())
    patterns = "fastdiff/ops/*.py", "fastdiff/ops/triton/*.py"
    return [partial(kept.answer, partial(rows, arch, names), patterns, version(), arch, names) for arch in archs]


def rows(arch, cases):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(kept.PLACE / "triton")  # of kernels without binaries, which nobody else must find
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(arch), json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"Triton's kernels do not compile: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


class Driver:
    """Stands for Triton's driver."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compiled(arch, cases):
    """(case, kernel) of each specialisation, compiled to PTX and not launched."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from fastdiff.ops import triton as backend

    run, launched, seen = JITFunction.run, [], set()

    def compile_only(kernel, *arguments, grid, warmup, **options):
        launched.append(run(kernel, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    CUDABackend.make_cubin = staticmethod(lambda *arguments: b"")  # facts() does that, and listens
    driver.set_active(Driver(arch))
    for name in cases:
        getattr(backend, CASES[name].op)(*CASES[name].arguments(maker("meta")))
        while launched:
            kernel = launched.pop(0)
            if kernel.hash not in seen:
                yield name, kernel
            seen.add(kernel.hash)


def ptxas(arch):
    """The ptxas that Triton uses."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    newer = tools / "ptxas-blackwell"
    return newer if arch >= 100 and newer.exists() else tools / "ptxas"


def facts(text, arch):
    target = text.partition(".target ")[2].split()[0].rstrip(",")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        command = [ptxas(arch), "-v", f"--gpu-name={target}", source, "-o", Path(folder, "kernel.cubin")]
        return ptx.facts(text, subprocess.run(command, capture_output=True, text=True, check=True).stderr, arch)


def row(arch, case, kernel):
    (name, known), metadata = next(iter(facts(kernel.asm["ptx"], arch).items())), kernel.metadata
    numbers = ptx.measured(known, arch, metadata.shared, 32 * metadata.num_warps)
    return {"language": "triton", "kernel": name, "case": case, "arch": arch, **numbers}


def main():
    """In a process of its own: architecture and cases from the command line, rows to the output, all as JSON."""
    arch, cases = map(json.loads, sys.argv[1:])
    print(json.dumps([row(arch, *each) for each in compiled(arch, cases)]))
