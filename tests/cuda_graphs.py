"""A stand-in for what `fastdiff.capture` uses of torch.cuda, on the CPU and with the same meaning.

While a graph records, every operation is noted with the tensors it reads and writes, and what it changes is put back
afterwards, torch's generator too: recording runs nothing. Replaying does those operations again, on the same tensors,
into the memory of the first results: whatever the host would have decided anew is frozen, as it is in a CUDA graph.
Reading a value by the host raises as CUDA does. `log` has the calls in their order.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class Graph:
    def __init__(self, log):
        self.log, self.operations = log, []

    @torch.no_grad()
    def replay(self):
        self.log.append("replay")
        for operation, arguments, keywords, results in self.operations:
            for before, now in zip(results, tree_leaves(operation(*arguments, **keywords)), strict=True):
                if isinstance(before, torch.Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class Recording(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.before = graph, {}

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if operation in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for place, argument in enumerate(operation._schema.arguments):
            value = arguments[place] if place < len(arguments) else keywords.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor):
                        self.before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        result = operation(*arguments, **keywords)
        self.graph.operations.append((operation, arguments, keywords, tree_leaves(result)))
        return result

    @torch.no_grad()
    def undo(self):
        for value, before in self.before.values():
            value.copy_(before)


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Cuda:
    """The part of the module torch.cuda that captures steps."""

    def __init__(self, fail=None):
        self.log, self.fail = [], fail
        self.streams = [Stream("main", self.log)]

    def Stream(self, device):
        return Stream("side", self.log)

    def CUDAGraph(self):
        return Graph(self.log)

    def current_stream(self, device):
        return self.streams[-1]

    @contextlib.contextmanager
    def device(self, device):
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.log.append(f"record on {stream.name}")
        if self.fail:
            raise self.fail
        recording = Recording(graph)
        try:
            with torch.random.fork_rng([]), recording:
                yield
        finally:
            recording.undo()
