"""The kernels that torch inductor generates for CUDA from an op's plain definition, run as PTX.

The wrapper that inductor writes is executed with CPU tensors, its kernels replaced by launches on ptxsim.
"""

import contextlib
import importlib.util
import math
from unittest import mock

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from . import plain, simulator

WARP = simulator.WARP


def unavailable():
    """Why nothing can be generated; None where it can."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def instructions(case):
    """That lanes have issued, of each kernel's candidate configuration with the fewest."""
    arguments = case.arguments()
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    permuted = {name: order(value) for name, value in tensors.items()}
    dense = {name: value.permute(permuted[name]).contiguous() for name, value in tensors.items()}
    rest = {name: value for name, value in arguments.items() if name not in tensors and value is not None}

    def function(*values):
        views = [value.permute(inverse(permuted[name])) for name, value in zip(dense, values, strict=True)]
        return list(getattr(plain, case.op)(case, **dict(zip(dense, views, strict=True)), **rest).values())

    graph = traced(function, list(dense.values()))
    specs = [(str(value.dtype).removeprefix("torch."), tuple(value.shape)) for value in dense.values()]
    with mock.patch.object(torch.Tensor, "contiguous", contiguous):
        found = simulator.load("inductor_util").inductor_kernels(lambda *values: graph(*values), specs)
    counter = Counter()
    execute(found.source, counter, list(dense.values()))
    return counter.total


def traced(function, tensors):
    """The function's operations on the CPU, where autograd and indexing need no driver; they are done on a GPU then."""
    graph = make_fx(function)(*tensors)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()
    return graph


def contiguous(tensor, memory_format=torch.contiguous_format):
    """Tensor.contiguous, which asks the driver for the device of a tensor that is not."""
    done = tensor.is_contiguous(memory_format=memory_format)
    return tensor if done else torch.ops.aten.clone(tensor, memory_format=memory_format)


def order(tensor):
    """The dimensions from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda i: (-tensor.stride(i), i))


def inverse(permutation):
    return [permutation.index(i) for i in range(len(permutation))]


class Counter:
    """Stands for inductor's AsyncCompile: its kernels run on ptxsim."""

    def __init__(self):
        self.total = 0

    def triton(self, name, source, device_str="cuda"):
        return Kernel(self, simulator.load("inductor_util").InductorKernel(name, source, []))

    def wait(self, scope):
        pass


class Kernel:
    """One that inductor generated, with its candidate configurations."""

    def __init__(self, counter, generated):
        self.counter, self.generated = counter, generated

    def run(self, *arguments, stream):
        fewest = math.inf
        for config in range(len(self.generated.configs)):
            last = config == len(self.generated.configs) - 1
            given = [each.clone() if isinstance(each, torch.Tensor) and not last else each for each in arguments]
            fewest = min(fewest, self.launch(config, given))
        self.counter.total += fewest

    def launch(self, config, arguments):
        from torch._inductor.runtime.triton_heuristics import GridExpr

        kernel = self.generated
        compiled = kernel.compile(config)
        values = dict(zip(kernel.fn.arg_names, arguments, strict=False))
        grid = GridExpr.from_meta(kernel.inductor_meta, kernel.configs[config]).eval_slow(
            {name: value for name, value in values.items() if isinstance(value, int)}
        )
        given = [flat(values[name]) for name in compiled.arg_names]
        stats = compiled.launch(grid, given, on_race="ignore", on_uninit="ignore")
        return WARP * stats["warp_instructions"]


def flat(value):
    """A dense tensor's memory, whatever its order."""
    return value.as_strided((value.numel(),), (1,)) if isinstance(value, torch.Tensor) else value


def execute(source, counter, tensors):
    """Inductor's wrapper, its device the CPU."""
    util = simulator.load("inductor_util")
    module = {"__name__": "inductor_wrapper"}
    with util.fake_h100(), contextlib.ExitStack() as stack:
        for name in ("_DeviceGuard", "set_device"):
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_: contextlib.nullcontext(), create=True))
        stack.enter_context(mock.patch("torch._inductor.async_compile.AsyncCompile", lambda: counter))
        exec(compile(source.partition("\ndef get_args")[0], "inductor_wrapper", "exec"), module)
        module.update(
            empty_strided_cuda=lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype),
            get_raw_stream=lambda index: 0,
            assert_size_stride=lambda *_: None,
        )
        module["call"](tensors)
