"""The CUDA kernels, every instantiation in csrc/cuda: read from the native build, else compiled with setup.py's flags.

Blocks and dynamic shared memory are those of the host functions: the harness of tests/simt runs them.
"""

import functools
import importlib.util
import math
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path

from . import built, kept, ptx
from .cases import CASES, maker

ROOT = Path(__file__).resolve().parents[2]
_LAUNCHING = threading.Lock()
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


def tasks(archs, cases=None):
    """Functions that each return a row for every kernel of a file, of the cases' ops or all; the longest first."""
    ops = {CASES[name].op for name in cases or ()}
    sources = [path for path in (ROOT / "csrc/cuda").glob("*.cu") if not ops or path.stem in ops]
    sources.sort(key=lambda path: (-path.stat().st_size, path.name))
    return [functools.partial(rows, source, arch) for source in sources for arch in archs]


def rows(source, arch):
    patterns = str(source.relative_to(ROOT)), "csrc/*.h", "csrc/cuda/*.*h"
    found = kept.answer(lambda: facts(source, arch), patterns, version(), *command(arch))
    launched = launches()
    for name, known in found.items():
        name = qualified(source.stem, name)
        case, threads, dynamic = launched.get(name, (None, known["threads"], 0))
        yield {"language": "cuda", "kernel": name, "case": case, "arch": arch,
               **ptx.measured(known, arch, dynamic, threads)}  # fmt: skip


def facts(source, arch):
    """Of each kernel, by its readable name."""
    found = ptx.facts(*(built.made(source, arch, version()) or compiled(source, arch)), arch)
    return {name: found[symbol] for symbol, name in names(found).items()}


def command(arch):
    return [_nvcc()[0].command, *_setup().NVCC_FLAGS.split(), f"-arch=sm_{arch}", "-Xptxas=-v", "-cubin"]


def compiled(source, arch):
    """(PTX, what ptxas says)."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = ["--keep", f"--keep-dir={folder}", "-o", f"{folder}/kernel.cubin", str(source)]
        done = subprocess.run([*command(arch), *outputs], capture_output=True, text=True)
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


def launches():
    """(first case, most threads of a block, most dynamic shared memory) by kernel; {} where the harness cannot run."""
    from tests.simt import harness

    with _LAUNCHING:
        return {} if harness.unavailable() else _launches(harness)


@functools.cache
def _launches(harness):
    found = {}
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
