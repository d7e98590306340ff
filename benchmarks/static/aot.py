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
from pathlib import Path

import torch

from . import ptx
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


def rows(archs, cases=None):
    """A row for every specialisation of a kernel, under the first case that launches it."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    command += [json.dumps(list(each)) for each in (archs, cases or representative())]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"Triton's kernels do not compile: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


class Driver:
    """Stands for Triton's driver; the number of a device is its architecture."""

    arch = None

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device):
        return 0


def compiled(archs, cases):
    """(architecture, case, kernel) of each specialisation, compiled and not launched."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from fastdiff.ops import triton as backend

    run, launched = JITFunction.run, []

    def compile_only(kernel, *arguments, grid, warmup, **options):
        launched.append(run(kernel, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    driver.set_active(Driver())
    for driver.active.arch in archs:
        seen = set()
        for name in cases:
            getattr(backend, CASES[name].op)(*CASES[name].arguments(maker("meta")))
            while launched:
                kernel = launched.pop(0)
                if kernel.hash not in seen:
                    yield driver.active.arch, name, kernel
                seen.add(kernel.hash)


def ptxas(arch):
    """The ptxas that Triton uses."""
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    newer = tools / "ptxas-blackwell"
    return newer if arch >= 100 and newer.exists() else tools / "ptxas"


def resources(text, arch):
    target = text.partition(".target ")[2].split()[0].rstrip(",")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(text)
        command = [ptxas(arch), "-v", f"--gpu-name={target}", source, "-o", Path(folder, "kernel.cubin")]
        return ptx.resources(subprocess.run(command, capture_output=True, text=True, check=True).stderr)


def row(arch, case, kernel):
    (name, body), metadata = next(iter(ptx.kernels(kernel.asm["ptx"]).items())), kernel.metadata
    used = resources(kernel.asm["ptx"], arch)[name]
    numbers = ptx.measured(body, used, arch, metadata.shared, 32 * metadata.num_warps)
    return {"language": "triton", "kernel": name, "case": case, "arch": arch, **numbers}


def main():
    """In a process of its own: architectures and cases from the command line, rows to the output, all as JSON."""
    print(json.dumps([row(*each) for each in compiled(*map(json.loads, sys.argv[1:]))]))
