"""The CUDA kernels' PTX, as fastdiff._C carries it, launched by their own host functions.

The library of tests/simt has the host functions; with `elsewhere` it hands each launch over: the kernel's name, its
grid, and the bytes of its arguments. In these, addresses of tensors become those of ptxsim's buffers.
"""

import functools
import importlib.util
import re
import struct

import torch

from benchmarks.static import built, ptx
from benchmarks.static import cuda as static
from fastdiff.ops import native
from tests.simt import harness

from . import simulator
from .simulator import Buffer

_VARIABLE = re.compile(r"^\.(?:extern|shared|global|const)\b.*?;", re.MULTILINE | re.DOTALL)
_PARAMETERS = re.compile(r"(\.entry\s+[\w$]+\s*\()(.*?)(\))", re.DOTALL)
EXTRA = 40  # parameters added to each kernel, for the buffers that its structs point to


def unavailable():
    """Why there is no PTX or nothing to launch it; None where there is."""
    if native.unavailable():
        return native.unavailable()
    if not native._C.cuda_architectures:
        return "this build has no CUDA kernels"
    return harness.unavailable() or (None if built.cuobjdump() else "there is no cuobjdump: Triton has one")


@functools.cache
def modules():
    """{source file: {kernel: (its text with what it needs of the module, symbol)}}."""
    library = importlib.util.find_spec("fastdiff._C").origin
    found = {}
    for _, module in sorted(built.modules(library)):  # the newest architecture's last
        bodies = ptx.kernels(module)
        head = module[: module.index(".address_size 64")] + ".address_size 64\n" + "\n".join(_VARIABLE.findall(module))
        names = static.names(bodies) if bodies else {}
        each = {name: (f"{head}\n{_whole(bodies[symbol])}", symbol) for symbol, name in names.items()}
        ops = [op for op in (name.partition("_kernel")[0] for name in each) if op in harness.ARGUMENTS]
        if ops:
            found[source_of(ops[0])] = each
    return found


def kernels():
    """Every kernel there is."""
    return {static.qualified(source, kernel) for source, each in modules().items() for kernel in each}


def target():
    """Version and target of the PTX, such as "9.0 sm_100"."""
    text = next(iter(next(iter(modules().values())).values()))[0]
    return " ".join(re.search(rf"\.{word} (\S+)", text)[1] for word in ("version", "target"))


def _whole(body):
    """A kernel's text up to its closing brace, with EXTRA pointers more."""
    extra = "".join(f",\n\t.param .u64 buffer_{i}" for i in range(EXTRA))
    return ".visible " + _PARAMETERS.sub(rf"\g<1>\g<2>{extra}\g<3>", body[: body.rindex("}") + 1].lstrip(), count=1)


def source_of(op):
    """The file in csrc/cuda that has the op's kernels."""
    return op.removesuffix("_backward") if op.startswith(("diffusion_loss", "vlb_terms")) else op


class Call:
    """One call of an op's host function, to the kernels of a source file."""

    def __init__(self, source, buffers, run, plant):
        self.source, self.buffers, self.run, self.plant = source, buffers, run, plant

    def launch(self, kernel, grid, block, shared, arguments):
        """What tests/simt hands over."""
        kernel, ptxsim = kernel.replace("fastdiff::", ""), simulator.load()
        text, symbol = modules()[self.source][kernel]
        module = parsed(self.plant(text) if self.plant else text)
        pointers = [each.argument(self.run) for each in self.buffers]
        places = self.places(module, pointers)
        given = [placed(value, places) for value in arguments]
        sizes = [size for _, _, size in module.kernels[symbol].params]
        if [len(value) for value in given] != sizes[: len(sizes) - EXTRA]:
            raise ValueError(f"arguments of {kernel} must be as it was compiled for: build the module again")
        given += pointers + [ptxsim.NULL] * (EXTRA - len(pointers))
        stats = simulator.launch(module, symbol, grid, block, given, shared)
        named = {f"buffer_{i}": each for i, each in enumerate(self.buffers)}
        self.run.add(static.qualified(self.source, kernel), stats, named)

    def places(self, module, pointers):
        """(begin, end, ptxsim's address) of memory: it numbers a module's variables, the arguments, and the buffers."""
        ptxsim, first = simulator.load(), len(module._vars) + 2
        spans = ptxsim._spans(pointers, [each.name for each in self.buffers])
        return [(each["lo"], each["hi"], first + i << ptxsim.VA_SHIFT) for i, each in enumerate(spans)]


@functools.lru_cache(maxsize=16)
def parsed(text):
    return simulator.load().Module(text)


def placed(value, places):
    """An argument's bytes, its addresses of tensors replaced."""
    words = list(struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]))
    for i, word in enumerate(words):
        for begin, end, place in places:
            if begin <= word < end:
                words[i] = place + word - begin
    return struct.pack(f"<{len(words)}Q", *words) + value[len(words) * 8 :]


class Binding(harness.Binding):
    """Stands for fastdiff._C: the host functions of csrc/cuda, the kernels' PTX."""

    def __init__(self, run, plant):
        super().__init__()
        self.run, self.plant = run, plant

    def _call(self, op, names, *arguments):
        each = [pair for pair in zip(names, arguments[3:], strict=False) if isinstance(pair[1], torch.Tensor)]
        buffers = [Buffer.of(name.rstrip("*"), tensor, name.endswith("*")) for name, tensor in each]
        simt = harness.load()["simt"]
        simt.set_elsewhere(Call(source_of(op), buffers, self.run, self.plant).launch)
        try:
            return getattr(self._C, op)(*arguments)
        finally:
            simt.set_elsewhere(None)


def call(op, buffers, arguments, plant=None):
    """Calls the op's host function on CPU tensors. plant: changes the text of each kernel."""
    run = simulator.Run()
    before = native._C, native._place
    native._C, native._place = Binding(run, plant), lambda tensor: (0, 0, 0)
    try:
        getattr(native, op)(*arguments)
    finally:
        native._C, native._place = before
    return run
