"""A step on a GPU, recorded once as a CUDA graph and replayed: the host then costs one launch a step.

All that a captured step needs to be right is here: the device guard, the side stream, the warm-up, the lifetime of what
the graph allocated. What the step must bring: every input in tensors that stay where they are, its place in the run in
a counter on the device that it advances itself, and no read of a device value by the host.
"""

import contextlib
import warnings
from collections import Counter

import torch

WARM_UP = 2  # steps of a kind that run as they are, before one is recorded


class Capture:
    """capture(*kind) runs step(*kind): the first WARM_UP times of each kind as it is, then replaying its graph.

    No step is lost to warming up or recording, since the former are real steps and recording runs nothing.

    Args:
        step: step(*kind), with kind hashable values that tell apart what different work on the device means.
        device: torch.device of its tensors.
        required: a step that cannot be recorded raises RuntimeError; else it warns, once, and all go on as they are.
        cuda: torch.cuda, or what stands in for it.

    Memory that a step allocates while it is recorded belongs to its graph and lives as long as this object does.
    Results are valid until the next call. Not for use by several threads at once.
    """

    def __init__(self, step, device, *, required=False, cuda=torch.cuda):
        self.step, self.device, self.required, self.cuda = step, device, required, cuda
        self.graphs, self.results, self.seen, self.refused = {}, {}, Counter(), None
        with cuda.device(device):
            self.side = cuda.Stream(device)

    def __call__(self, *kind):
        with self.cuda.device(self.device):
            if kind not in self.graphs and self.seen[kind] >= WARM_UP and self.refused is None:
                self._record(kind)
            graph = self.graphs.get(kind)
            if graph is not None:
                graph.replay()
                return self.results[kind]
            self.seen[kind] += 1
            return self._run_aside(kind) if self.refused is None else self.step(*kind)

    def _run_aside(self, kind):
        """On the stream that will record, so that libraries set up there what recording forbids."""
        current = self.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        with self.cuda.stream(self.side):
            result = self.step(*kind)
        current.wait_stream(self.side)
        return result

    def _record(self, kind):
        graph = self.cuda.CUDAGraph()
        try:
            # Other threads may go on with what they do: a data loader pins memory, backward runs on its own.
            with _own_casts(), self.cuda.graph(graph, stream=self.side, capture_error_mode="thread_local"):
                result = self.step(*kind)
        except Exception as error:  # whatever a step does that a graph cannot hold
            self.refused = str(error).partition("\n")[0] or type(error).__name__
            if self.required:
                raise RuntimeError(f"cuda_graph must be False or 'auto' for this step, got True: {error}") from error
            warnings.warn(f"running without a CUDA graph: {self.refused}", RuntimeWarning, stacklevel=4)
        else:
            self.graphs[kind], self.results[kind] = graph, result


@contextlib.contextmanager
def _own_casts():
    """Autocast converts weights inside the graph: those that it keeps are freed when autocast ends, a graph is not."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
