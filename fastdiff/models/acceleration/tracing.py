"""A module's forward as a graph, for one kind of arguments. Modules below it stay calls: their hooks are kept."""

import contextlib
import inspect
import itertools
import logging
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import fx, nn

from . import ranks

# What a graph does not hold, by the names that bring it in.
CONTEXTS = {"autocast", "no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "a decorator"}
# What tracing may end in: anything that a forward does with a tensor and that a proxy cannot.
ERRORS = (Exception,)


class _Map(fx.Proxy):
    """The proxy of a tensor of known rank: it passes for a tensor where a forward asks, and answers len(x.shape)."""

    __class__ = property(lambda self: torch.Tensor)
    _is_param = False  # nn.Parameter asks this of tensors

    def __getattr__(self, name):
        if name == "ndim":
            return self.node.meta["rank"]
        return _Shape(self, name) if name == "shape" else super().__getattr__(name)

    def dim(self):
        return self.node.meta["rank"]


class _Shape(fx.proxy.Attribute):
    def __len__(self):
        return self.root.node.meta["rank"]


class _Tracer(fx.Tracer):
    traced_func_name = "_fastdiff_entry"

    def __init__(self, module, given):
        super().__init__()
        self.given, self.modules = iter(given), dict(module.named_modules())
        named = itertools.chain(module.named_parameters(), module.named_buffers())
        self.tensors = {path: tensor.dim() for path, tensor in named}

    def is_leaf_module(self, module, path):
        return True

    def call_module(self, module, forward, args, kwargs):
        if is_plain_sequential(module):  # in line, also where it is a slice of one, which has no path
            return forward(*args, **kwargs)
        return super().call_module(module, forward, args, kwargs)

    def proxy(self, node):
        given = node.op == "placeholder"
        rank = next(self.given) if given else ranks.rank_of(node, self.modules, self.tensors)
        node.meta["rank"] = rank
        return super().proxy(node) if rank is None else _Map(node, self)

    def create_arg(self, value):
        return value.node if type(value) is _Map else super().create_arg(value)


def is_plain_sequential(module):
    """Called as a whole it is its modules one after the other, and nobody listens."""
    plain = isinstance(module, nn.Sequential) and original(module).forward is nn.Sequential.forward
    return plain and not hooked(module)


def original(module):
    """The class that the module had before it was accelerated."""
    return getattr(type(module), "_fastdiff_original", type(module))


def hooked(module):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def trace(module, given, rebuild):
    """The graph of module.forward(*args, **kwargs), (args, kwargs) = rebuild(proxies), one of each rank given.

    Raises where the forward depends on the values of its tensors, or on what a graph does not hold.
    """
    cls = original(module)
    contexts = CONTEXTS & _names(cls, cls.forward)
    if contexts:
        raise ValueError(f"it uses {', '.join(sorted(contexts))}")

    def call(self, *tensors):
        args, kwargs = rebuild(tensors)
        return cls.forward(self, *args, **kwargs)

    names = ", ".join(["self", *(f"a{i}" for i in range(len(given)))])
    entry = eval(f"lambda {names}: call({names})", {"call": call})  # the tracer reads the names
    graph, constants = _traced(module, type(cls.__name__, (cls,), {"_fastdiff_entry": entry}), given)
    if constants:
        raise ValueError("it makes a tensor that depends on none of its arguments")
    return graph


def _traced(module, cls, given):
    """(graph, names of constants that the tracer left in the module, now gone) of the module in that class."""
    before, attributes = type(module), set(vars(module))
    module.__class__ = cls
    try:
        with _refusing_functions(), _silent():
            graph = _Tracer(module, given).trace(module)
    finally:
        module.__class__ = before
        constants = [name for name in vars(module) if name not in attributes and name.startswith("_tensor_constant")]
        for name in constants:
            delattr(module, name)
    return graph, constants


@contextlib.contextmanager
def _silent():
    """What a forward logs of its arguments is not said of those that stand in for them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _refusing_functions():
    """No graph holds an autograd.Function or a checkpoint: it would run what is in them."""

    def refuse(*args, **kwargs):
        raise ValueError("it calls an autograd.Function or a checkpoint")

    targets = [(torch.autograd.Function, "apply"), (torch.utils.checkpoint, "checkpoint")]
    generator = "_checkpoint_without_reentrant_generator"
    if hasattr(torch.utils.checkpoint, generator):
        targets.append((torch.utils.checkpoint, generator))
    with contextlib.ExitStack() as stack:
        for owner, name in targets:
            stack.enter_context(mock.patch.object(owner, name, refuse))
        yield


def _names(cls, function, seen=None):
    """Every name that a method uses, and those methods of its class that it names."""
    seen = set() if seen is None else seen
    code = getattr(inspect.unwrap(function), "__code__", None)
    names = set(code.co_names) if code else set()
    if hasattr(function, "__wrapped__"):
        names.add("a decorator")
    for name in names - seen:
        seen.add(name)
        method = getattr(cls, name, None)
        if inspect.isfunction(method) and not hasattr(nn.Module, name):
            names |= _names(cls, method, seen)
    return names
