"""The Triton kernels, compiled for sm_90 with no GPU as their host functions launch them, and run as PTX."""

import contextlib
import functools
import importlib.util
import re

import torch

from benchmarks.static.aot import Driver

from . import simulator
from .simulator import Buffer

ARCH = 90
# A value that a layout replicates is stored by each warp that has it.
HARMLESS = frozenset({"same-value-race"})


def unavailable():
    """Why nothing can be compiled; None where it can."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def kernels():
    """Every kernel there is."""
    sources = (simulator.ROOT / "fastdiff/ops/triton").glob("*.py")
    return {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)}


@functools.lru_cache(maxsize=16)
def parsed(text):
    return simulator.load().Module(text)


def launch(kernel, arguments, grid, buffers, run, plant):
    """Runs a compiled kernel. arguments: by name; buffers: of the call's own tensors, by address."""
    module = parsed(plant(kernel.asm["ptx"]) if plant else kernel.asm["ptx"])
    (name,) = module.kernels
    parameters = [parameter for parameter, _, _ in module.kernels[name].params]
    reached, given = {}, []
    for each in (each for each, kind in kernel.src.signature.items() if kind != "constexpr"):
        value, parameter = arguments[each], parameters[len(given)]
        if isinstance(value, torch.Tensor):
            reached[parameter] = buffers.get(value.data_ptr()) or Buffer.of(each, value, True)
            value = reached[parameter].argument(run)
        given.append(value)
    given += [simulator.load().NULL] * (len(parameters) - len(given))  # scratch memory that no kernel here uses
    threads = simulator.WARP * kernel.metadata.num_warps
    stats = simulator.launch(module, name, grid, threads, given, kernel.metadata.shared)
    run.add(name, stats, reached)


@contextlib.contextmanager
def launched_by(function):
    """In this context, launches are function(kernel, arguments by name, grid)."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def instead(kernel, *arguments, grid, warmup, **options):
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        function(compiled, dict(zip(kernel.arg_names, arguments, strict=False)) | options, grid)

    driver.set_active(Driver(ARCH))
    JITFunction.run = instead
    try:
        yield
    finally:
        JITFunction.run = run


def call(op, buffers, arguments, plant=None):
    """Calls the op's host function on CPU tensors. plant: changes the text of each kernel."""
    from fastdiff.ops import triton as backend

    run, by_address = simulator.Run(HARMLESS), {each.address: each for each in buffers}
    with launched_by(lambda *launched: launch(*launched, by_address, run, plant)):
        getattr(backend, op)(*arguments)
    return run
