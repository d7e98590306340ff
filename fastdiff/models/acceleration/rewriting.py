"""A module's forward with its norms as fused ops, rebuilt for each kind of arguments that it is called with."""

import inspect
import operator
import threading
import warnings
import weakref

import torch
from torch import fx

from ...ops import _dispatch
from . import patterns, tracing

_CONSTANTS = (type(None), bool, int, float, str)
_MOST = 32  # graphs of one forward: numbers among its arguments may be others in each call


class Rewritten:
    """forward(module, *args, **kwargs): a graph per kind of arguments; the module's own forward where there is none.

    The kind is which arguments are tensors, the values of the others (None, numbers, text), and the mode: so a forward
    that asks `if emb is None` or `self.training` is followed correctly. Graphs are made anew where an attribute of the
    module has been set to something else. Where somebody has registered a hook on a module whose work the graph does,
    the module's own forward runs, which calls it.
    """

    def __init__(self, module):
        self.original = tracing.original(module).forward
        self.graphs = {mode: weakref.WeakKeyDictionary() for mode in (False, True)}  # of it and its deep copies

    def __call__(self, module, args, kwargs):
        tensors = []
        try:
            kinds = _kind(args, tensors), _kind(tuple(kwargs.items()), tensors)
        except TypeError:  # an argument that is neither tensor nor constant
            return self.original(module, *args, **kwargs)
        kind, of_mode = (*kinds, torch.is_grad_enabled()), self.graphs[module.training]
        graphs = of_mode.get(module)
        compiling = torch.compiler.is_compiling()  # which takes no two ways to a module for the same
        fresh = graphs is not None and (compiling or _same(graphs.state, _state(module)))
        if not fresh or kind not in graphs.functions:
            made = 0 if graphs is None else graphs.made
            if compiling or made == _MOST or not _alone():
                return self.original(module, *args, **kwargs)
            if not fresh:
                graphs = of_mode[module] = _Graphs(_state(module), made)
            self._build(graphs, kind, module, args, kwargs, [t.dim() for t in tensors])
        function, absorbed = graphs.functions[kind]
        if function is None or _any_hooked(module, absorbed):
            return self.original(module, *args, **kwargs)
        return function(module, *tensors)

    def _build(self, graphs, kind, module, args, kwargs, given):
        graphs.made += 1
        graphs.functions[kind] = None, ()
        try:
            graph, matches = rewrite(module, args, kwargs, given)
            if matches:
                graphs.functions[kind] = compiled(module, graph), absorbed(module, graph)
            return
        except tracing.ERRORS as failure:
            reason = str(failure).partition("\n")[0]
        name = tracing.original(module).__name__
        warnings.warn(f"{name}.forward keeps its own norms for such arguments: {reason}", RuntimeWarning, stacklevel=2)


class _Graphs:
    """Of one module in one mode and state: by kind, (function or None, paths of modules that it does not call)."""

    def __init__(self, state, made):
        self.state, self.made, self.functions = state, made, {}


def _state(module):
    """The values of its attributes, and the modules right below it."""
    return [*module.__dict__.values(), *module._modules.values()]


def _same(before, now):
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _alone():
    """Tracing patches nn.Module for the whole process: it waits for a call outside of threads.

    As it waits for one outside of transforms and dispatch modes, which would see it.
    """
    return _dispatch.untransformed() and threading.current_thread() is threading.main_thread()


def rewrite(module, args, kwargs, given):
    """(graph, {path of a norm: (what it is, the matches of its calls)}) of a forward called so."""
    graph = tracing.trace(module, given, lambda tensors: _rebuilt((args, kwargs), iter(tensors)))
    modules, matches = dict(module.named_modules()), {}
    for node in list(graph.nodes):
        if node.op != "call_module" or tracing.hooked(modules[node.target]) or len(node.args) != 1 or node.kwargs:
            continue
        norm, path = patterns.norm_of(modules[node.target]), node.target
        if norm is None:
            continue
        target = modules[path]
        found = patterns.match(node, modules.get)
        if norm.kind == "rms":
            patterns.replace(graph, found, f"{path}.{norm.weight}", None, None, None)
            found = found._replace(other=None)
        else:
            names = [f"{path}.{name}" if target.affine else None for name in ("weight", "bias")]
            patterns.replace(graph, found, *names, target.num_groups, target.eps)
        matches.setdefault(path, (norm, []))[1].append(found)
    return graph, matches


def absorbed(module, graph):
    """The paths, as names, of modules below one that its graph neither calls nor has within one that it calls."""
    called = tuple(f"{node.target}." for node in graph.nodes if node.op == "call_module")
    return [path.split(".") for path, _ in module.named_modules() if path and not f"{path}.".startswith(called)]


def _any_hooked(module, paths):
    """As `tracing.hooked`, past nn.Module's slow search for attributes; also where one of them is gone."""
    try:
        for path in paths:
            below = module
            for name in path:
                below = below._modules[name]
            if below._forward_hooks or below._forward_pre_hooks or below._backward_hooks or below._backward_pre_hooks:
                return True
            if "forward" in below.__dict__:
                return True
    except (KeyError, AttributeError):
        return True
    return False


def compiled(module, graph):
    """The graph as a function of the module and the tensors."""
    graph.lint()
    return type(fx.GraphModule(module, graph)).forward


def variants(module):
    """Arguments that a forward may be called with: those that it needs, as tensors, and with or without the others.

    The first is taken for a map, the others for embeddings [B, C].
    """
    parameters = list(inspect.signature(tracing.original(module).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = len([p for p in named if p.default is p.empty])
    few = sorted({needed, len(named)} - {0}) or [1]
    return [(torch.empty(0, 0, 0, 0), *(torch.empty(0, 0) for _ in range(count - 1))) for count in few]


def _kind(value, tensors):
    """A hashable description of the value; its tensors are appended to the list."""
    if type(value) in _CONSTANTS:
        return type(value), value
    if isinstance(value, torch.Tensor) and not isinstance(value, fx.Proxy):
        tensors.append(value)
        return torch.Tensor, value.dim()
    if type(value) in (tuple, list):
        return type(value), tuple(_kind(item, tensors) for item in value)
    raise TypeError


def _rebuilt(value, tensors):
    """The value with its tensors replaced, in their order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if type(value) in (tuple, list):
        return type(value)(_rebuilt(item, tensors) for item in value)
    if type(value) is dict:
        return {name: _rebuilt(item, tensors) for name, item in value.items()}
    return value
