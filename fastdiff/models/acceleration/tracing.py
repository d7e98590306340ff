"""A module's forward as a graph, for one kind of arguments. Modules below it stay calls: their hooks are kept."""

import contextlib
import inspect
import itertools
import logging
import operator
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import fx, nn

from . import ranks
from .untouched import Untouched

# What a graph does not hold, by the names that bring it in.
CONTEXTS = {"autocast", "no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "a decorator"}
# x += y and the like, which write into x.
IN_PLACE = [getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")]
# What tracing may end in: anything that a forward does with a tensor and that a proxy cannot.
ERRORS = (Exception,)


class _Proxy(fx.Proxy):
    """x += y writes into x, which others may have, where fx' own makes it x = x + y."""


for _function in IN_PLACE:
    def _in_place(self, other, function=_function):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    setattr(_Proxy, f"__{_function.__name__}__", _in_place)


class _Map(_Proxy):
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
        return _Proxy(node, self) if rank is None else _Map(node, self)

    def create_arg(self, value):
        return value.node if isinstance(value, _Proxy) else super().create_arg(value)


def is_plain_sequential(module):
    """Called as a whole it is its modules one after the other, and nobody listens."""
    plain = isinstance(module, nn.Sequential) and original(module).forward is nn.Sequential.forward
    return plain and not hooked(module)


def original(module):
    """The class that the module had before it was accelerated."""
    return getattr(type(module), "_fastdiff_original", type(module))


def hooked(module):
    """Why calling a module is more than its class' forward; or ""."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name, None) for name in names):
        return "it has hooks"
    return own_forward(module)


def own_forward(module):
    """Why the class' forward of a module is not what runs; or ""."""
    return "it has a forward that its class has not" if "forward" in vars(module) else ""


def trace(module, given, rebuild):
    """The graph of module.forward(*args, **kwargs), (args, kwargs) = rebuild(proxies), one of each rank given.

    Raises where the forward depends on the values of its tensors, or on what a graph does not hold; the module and the
    random numbers to come are then, too, as if it had not been run.
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
    graph, changed, drawn = _traced(module, type(cls.__name__, (cls,), {"_fastdiff_entry": entry}), given)
    if drawn:
        raise ValueError("it draws random numbers beside its tensors")
    if any(name.startswith("_tensor_constant") for name in changed):
        raise ValueError("it makes a tensor that depends on none of its arguments")
    if changed:
        raise ValueError(f"it changes {', '.join(changed)} of its module")
    return graph


def _traced(module, cls, given):
    """(graph, what the forward or the tracer changed, whether it drew: see `Untouched`) of the module in that class."""
    before, untouched = type(module), Untouched(module)
    module.__class__ = cls
    try:
        with _refusing(), _silent():
            graph = _Tracer(module, given).trace(module)
    finally:
        module.__class__ = before
        changed, drawn = untouched.restore()
    return graph, changed, drawn


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
def _refusing():
    """No graph holds an autograd.Function or a checkpoint: it would run what is in them. Nor does it hold a context,
    whoever enters it, or that the module may be in another dtype next time."""
    function, checkpoint = "it calls an autograd.Function or a checkpoint", torch.utils.checkpoint
    targets = [(torch.autograd.Function, "apply", function), (checkpoint, "checkpoint", function)]
    generator = "_checkpoint_without_reentrant_generator"
    if hasattr(checkpoint, generator):
        targets.append((checkpoint, generator, function))
    for context in (torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode):
        targets.append((context, "__enter__", f"it uses {context.__name__}"))
    targets.append((torch.set_grad_enabled, "__init__", "it uses set_grad_enabled"))
    targets.append((nn.Module, "parameters", "it lists its parameters"))
    with contextlib.ExitStack() as stack:
        for owner, name, reason in targets:
            stack.enter_context(mock.patch.object(owner, name, _refusal(reason)))
        yield


def _refusal(reason):
    def refuse(*args, **kwargs):
        raise ValueError(reason)

    return refuse


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
