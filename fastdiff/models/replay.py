"""Forward passes of a small network on the CPU made again without their Python, which costs more than their arithmetic.

What a CUDA graph is to a GPU: at the second call with inputs of one shape the native calls and torch's operations are
noted down with their tensors, and from then on made again, on the same memory, until something about the network
changes: a parameter's version, address or content (`fastdiff.ops._memory`), or anything that one of its modules holds.
Results are the same bits. For `UNet` in inference (`fused.inference`), whose forward pass asks nothing of its tensors'
values.
"""

import functools
import threading
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..ops import _memory, _winograd, native

LARGEST = 32 << 20  # bytes of what a pass computes on its way, all of which is kept
SHAPES = 4  # passes kept for a network
_MADE_OF_NOTHING = frozenset({"aten::empty", "aten::empty_strided", "aten::new_empty", "aten::empty_like"})
_ATTENTION = "aten::_scaled_dot_product"  # tagged as random, for a dropout that no network here asks of it
_UNKNOWABLE = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
_HOOKS = "_forward_hooks", "_forward_pre_hooks"
_HELD = "_parameters", "_buffers", "_modules", *_HOOKS
_networks = weakref.WeakKeyDictionary()


def run(net, forward, *inputs):
    """forward(*inputs), tensors or None, by the network net; or what it would return, without calling it."""
    if not _winograd.allowed() or torch.is_autocast_enabled("cpu") or not all(map(_plain, inputs)):
        return forward(*inputs)
    passes = _networks.get(net)
    if passes is None:
        passes = _networks[net] = Passes()
    return passes.run(net, forward, inputs)


def _plain(value):
    return value is None or (type(value) is torch.Tensor and value.device.type == "cpu")


class Passes:
    """Of one network: by shapes, "seen", the pass, or "refused" where there can be none."""

    def __init__(self):
        self.lock, self.known = threading.Lock(), {}

    def run(self, net, forward, inputs):
        if not self.lock.acquire(blocking=False):  # another thread has the memory
            return forward(*inputs)
        try:
            key = (torch.get_num_threads(), native.simd_level(), *map(_described, inputs))
            found = self.known.pop(key, None)
            if isinstance(found, Pass) and found.state.holds():
                result = found(inputs)
            else:
                result = forward(*inputs)
                found = self._next(found, net, forward, inputs, result)
            self.known[key] = found  # the last used is the last
            if len(self.known) > SHAPES:
                del self.known[next(iter(self.known))]
            return result
        finally:
            self.lock.release()

    @staticmethod
    def _next(found, net, forward, inputs, result):
        """What is known of a shape after one more call. A pass is kept where it makes the same of these inputs, which
        are others than those that it was recorded with.
        """
        state = State.of(net) if found == "seen" else None
        if state is None:
            return "refused" if found == "refused" else "seen"
        made = recorded(forward, inputs, state)
        return made if made is not None and torch.equal(made(inputs), result) else "refused"


def _described(value):
    return value if value is None else (value.shape, value.dtype)


class Pass:
    """The calls of one forward pass, and the memory that they use."""

    def __init__(self, inputs, output, steps, state):
        self.inputs, self.output, self.steps, self.state = inputs, output, steps, state

    def __call__(self, inputs):
        for own, value in zip(self.inputs, inputs, strict=True):
            if own is not None:
                own.copy_(value)
        for step in self.steps:
            step()
        return self.output.clone()


def recorded(forward, inputs, state):
    """The `Pass` that does the same as forward(*inputs) in this state; None where there can be none."""
    with torch.inference_mode(False), torch.no_grad():
        own = [value if value is None else _half(value) for value in inputs]
        recorder = Recorder(value for value in own if value is not None)
        try:
            native._C.record(True)
            with recorder:
                output = forward(*own)
            recorder.cut()
        except Exception:  # the same pass has just succeeded: what cannot be noted is not an error
            return None
        finally:
            native._C.record(False)
        return Pass(own, output, recorder.steps, state)


def _half(value):
    """Where an input is copied to, with other content in its range; an image lies as the network's images do."""
    half = value / 2 if value.is_floating_point() else value // 2
    return half.contiguous(memory_format=torch.channels_last if value.dim() == 4 else torch.contiguous_format)


class Refused(Exception):
    """A forward pass that cannot be made again, or would keep too much memory."""


class Recorder(TorchDispatchMode):
    """Notes every native call and every operation of torch whose result depends on the inputs, in their order."""

    def __init__(self, inputs):
        super().__init__()
        self.steps, self.bytes = [], 0
        self.kept = list(inputs)  # while tensors are here, nothing else has their memory
        self.live = {_place(value) for value in self.kept}

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # torch would import its compiler, which takes seconds, to keep it out of the next method

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.cut()
        result = func(*args, **kwargs)
        if self.cut():
            self._own(result)  # the kernels wrote it
        else:
            self._note(func, args, kwargs, result)
        return result

    def cut(self):
        """Whether there were native calls since the last cut: they are a step now, or the end of the last one."""
        calls = native._C.record(True)
        if calls is None:
            return False
        if not self.steps or not isinstance(self.steps[-1], Native):
            self.steps.append(Native())
        self.steps[-1].calls.append(calls)
        return True

    def _note(self, func, args, kwargs, result):
        results = tree_leaves(result)
        if not _repeatable(func) or not all(isinstance(value, torch.Tensor) for value in results):
            raise Refused(func)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        places = {_place(value) for value in given}
        if all(_place(value) in places for value in results):
            self.kept += results  # views
        elif func._schema.name in _MADE_OF_NOTHING:
            self._own(result)
        elif not self.live.isdisjoint(places):
            self._own(result)
            self.steps.append(operation(func, args, kwargs, results))
        else:
            self.kept += results  # of weights and numbers alone: it stays

    def _own(self, result):
        for value in tree_leaves(result):
            self.kept.append(value)
            if _place(value) not in self.live:
                self.live.add(_place(value))
                self.bytes += value.untyped_storage().nbytes()
        if self.bytes > LARGEST:
            raise Refused(f"{self.bytes} bytes")


def _repeatable(func):
    """Whether an operation writes nothing but its results, and these depend on nothing but what it is given."""
    if func._schema.is_mutable or not _UNKNOWABLE.isdisjoint(func.tags):
        return False
    return torch.Tag.nondeterministic_seeded not in func.tags or func._schema.name.startswith(_ATTENTION)


def _place(tensor):
    return tensor.untyped_storage().data_ptr()


class Native:
    """Kernels called one after the other."""

    def __init__(self):
        self.calls = []

    def __call__(self):
        status = native._C.replay(*self.calls)
        if status:
            native._raise(status)


def operation(func, args, kwargs, results):
    """A step that puts func(*args, **kwargs), one of torch's operations, where its results were at first.

    By its function in Python's own namespaces where that gives the same: calls by schema take three times as long.
    """
    name = func._schema.name.removeprefix("aten::")
    if name in ("clone", "_to_copy"):
        return functools.partial(results[0].copy_, args[0])
    expected = [value.clone() for value in results]
    quick = functools.partial(getattr(torch._C._nn, name, getattr(torch, name, func)), *args, **kwargs)
    if len(results) == 1:
        into = functools.partial(quick, out=results[0])
        if _gives(into, expected):
            return into
        results[0].copy_(expected[0])
    return Copied(quick if _gives(quick, expected) else functools.partial(func, *args, **kwargs), results)


def _gives(function, expected):
    try:
        return all(map(torch.equal, expected, _tensors(function())))
    except (TypeError, RuntimeError):  # it has no such arguments
        return False


def _tensors(result):
    return (result,) if isinstance(result, torch.Tensor) else result


class Copied:
    """An operation that allocates its results."""

    def __init__(self, function, results):
        self.function, self.results = function, results

    def __call__(self):
        for own, value in zip(self.results, _tensors(self.function()), strict=True):
            own.copy_(value)


def _known(kind):
    return kind.__module__.partition(".")[0] in ("fastdiff", "torch")


class State:
    """What a pass takes for granted of its network: every object that its modules hold, and the parameters' content."""

    def __init__(self, dictionaries, tensors, memory):
        self.dictionaries, self.tensors, self.memory = dictionaries, tensors, memory

    @classmethod
    def of(cls, net):
        """None where a module is not known to do the same each time, or a parameter's changes do not show."""
        dictionaries, tensors, memory = [], [], []
        for module in net.modules():
            own = vars(module)
            if any(own[name] for name in _HOOKS) or not _known(type(module)):
                return None
            for held in (own, *(own[name] for name in _HELD)):
                dictionaries += held, tuple(held.values())
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_inference():
                return None
            tensors += tensor, *_memory.facts(tensor)
            memory.append(tensor.untyped_storage())
        return cls(tuple(dictionaries), tuple(tensors), memory)

    def holds(self):
        """Whether all of it is as it was."""
        return native._C.unchanged(self.dictionaries, self.tensors)
