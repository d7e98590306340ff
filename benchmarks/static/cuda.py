"""The CUDA kernels, every instantiation in csrc/cuda, compiled by nvcc with the flags of setup.py.

Blocks and dynamic shared memory are those of the host functions: the harness of tests/simt runs them.
"""

import functools
import importlib.util
import math
import os
import re
import subprocess
import tempfile
from pathlib import Path

from . import ptx
from .cases import CASES, maker

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"^(?:void )?(?:\w+::|\(anonymous namespace\)::)*(\w+(?:<[^(]*>)?)\(")


@functools.cache
def _setup():
    spec = importlib.util.spec_from_file_location("fastdiff_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ARCHS = (80, 90, 100)


@functools.cache
def _nvcc():
    """What setup.py finds; None and the reason where it finds none."""
    try:
        setup = _setup()
        return setup.make_nvcc(os.environ), None
    except ImportError as error:
        return None, f"setup.py cannot be read: {error}"
    except setup.Missing as error:
        return None, str(error)


def unavailable():
    """Why there are no rows; None where there are."""
    return _nvcc()[1]


def version():
    return _nvcc()[0].version


def rows(archs, cases=None):
    """A row for every kernel in the files of the cases' ops, or of all."""
    launched, ops = launches(), {CASES[name].op for name in cases or ()}
    for arch in archs:
        for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
            if ops and source.stem not in ops:
                continue
            text, log = compiled(source, arch)
            used, bodies = ptx.resources(log), ptx.kernels(text)
            for symbol, name in names(used).items():
                name = qualified(source.stem, name)
                case, threads, dynamic = launched.get(name, (None, ptx.max_threads(bodies[symbol]), 0))
                numbers = ptx.measured(bodies[symbol], used[symbol], arch, dynamic, threads)
                yield {"language": "cuda", "kernel": name, "case": case, "arch": arch, **numbers}


def compiled(source, arch):
    """(PTX, what ptxas says)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [_nvcc()[0].command, *_setup().NVCC_FLAGS.split(), f"-arch=sm_{arch}", "-Xptxas=-v", "-cubin"]
        command += ["--keep", f"--keep-dir={folder}", "-o", f"{folder}/kernel.cubin", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{source.name} does not compile for sm_{arch}: {done.stderr[-2000:]}")
        return Path(folder, f"{source.stem}.ptx").read_text(), done.stderr


def names(symbols):
    """Readable names by symbol, such as "q_sample_kernel<bfloat16_t, true>"."""
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return {symbol: readable(line) for symbol, line in zip(symbols, done.stdout.splitlines(), strict=True)}


def readable(signature):
    found = _NAME.match(signature)
    return (found[1] if found else signature).replace("fastdiff::", "")


def qualified(op, name):
    """With the file, where the name does not say it."""
    return name if name.startswith(op) else f"{op}/{name}"


@functools.cache
def launches():
    """(first case, most threads of a block, most dynamic shared memory) by kernel; {} where the harness cannot run."""
    from tests.simt import harness

    found = {}
    if harness.unavailable():
        return found
    for case in CASES.values():
        for name, threads, dynamic in launched_by(case, harness):
            first, most_threads, most_dynamic = found.get(name, (case.name, 0, 0))
            found[name] = first, max(most_threads, threads), max(most_dynamic, dynamic)
    return found


def launched_by(case, harness):
    """(kernel, threads, dynamic shared memory) of each launch; one block of each runs."""
    from fastdiff.ops import native

    with harness.installed(), harness.only_blocks(0), harness.counted() as launched:
        getattr(native, case.op)(*case.arguments(maker("cpu")))
    return [
        (qualified(case.op, each["kernel"].replace("fastdiff::", "")), math.prod(each["block"]), each["shared"])
        for each in launched
    ]
