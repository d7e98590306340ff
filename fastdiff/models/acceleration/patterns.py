"""Norms, scale and shift, SiLU: recognised in a graph by what they compute."""

import operator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import kernels, tracing

_ADD, _MUL = {operator.add, torch.add, "add"}, {operator.mul, torch.mul, "mul"}
_CASTS = {"float", "type", "to", "type_as"}
_FRESH = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear  # they return what nobody else has


class Norm(NamedTuple):
    """A module that normalises: "group", or "rms" with its parameter's name."""

    kind: str
    weight: str = "weight"


class Match(NamedTuple):
    """A norm's node and what lies around it; the last of them gives what the fused op returns."""

    norm: fx.Node
    other: fx.Node | None  # x is this plus the norm's input's other operand
    scale: fx.Node | None
    shift: fx.Node | None
    silu: bool
    nodes: tuple  # to be erased, the last first


def norm_of(module):
    """What a module normalises by, or None: GroupNorm, with casts around it or not; x / |x| times a gain and
    sqrt(C)."""
    if tracing.original(module).forward is nn.GroupNorm.forward:
        return Norm("group")
    if isinstance(module, nn.GroupNorm):
        return Norm("group") if _is_cast_group_norm(module) else None
    parameters = dict(module.named_parameters())
    if len(parameters) == 1 and next(iter(parameters)).isidentifier() and not list(module.children()):
        name, weight = next(iter(parameters.items()))
        if weight.dim() >= 1 and weight.numel() == max(weight.shape) and _is_rms_norm(module, name):
            return Norm("rms", name)
    return None


def _graph(module):
    try:
        return tracing.trace(module, (4,), lambda tensors: (tensors, {}))
    except tracing.ERRORS:
        return None


def _is_cast_group_norm(module):
    graph = _graph(module)
    if graph is None:
        return False
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method", "call_module")]
    norms = [node for node in calls if node.target is F.group_norm]
    rest = [node for node in calls if node not in norms and node.target is not getattr]
    casts = all(node.op == "call_method" and node.target in _CASTS for node in rest)
    if len(norms) != 1 or not casts or not _is_own_group_norm(norms[0], module):
        return False
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    return (norms[0].args[0].op == "placeholder") == (result is norms[0])  # what is cast is cast back


def _is_own_group_norm(node, module):
    """group_norm(x, groups, weight, bias, eps) of the module's own four, x and the parameters cast or not."""
    given = {"weight": None, "bias": None, "eps": 1e-5, **node.kwargs}
    given |= dict(zip(("input", "num_groups", "weight", "bias", "eps"), node.args, strict=False))
    named = {name: _uncast(given[name]) for name in ("weight", "bias")}
    found = [value.target if isinstance(value, fx.Node) else value for value in named.values()]
    own = [name if getattr(module, name) is not None else None for name in named]
    return found == own and (given["num_groups"], given["eps"]) == (module.num_groups, module.eps)


def _uncast(value):
    while isinstance(value, fx.Node) and value.target in _CASTS:
        value = value.args[0]
    return value


def _is_rms_norm(module, name):
    """One F.normalize(x, dim=1), the gain, and sqrt(C), multiplied in any order; and nothing else."""
    graph = _graph(module)
    if graph is None:
        return False
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    factors = _factors(result)
    normalized = [f for f in factors if isinstance(f, fx.Node) and f.target is F.normalize]
    gains = [f for f in factors if isinstance(f, fx.Node) and f.op == "get_attr" and f.target == name]
    width = dict(module.named_parameters())[name].numel()
    roots = [f for f in factors if f not in normalized and f not in gains and _is_root(f, width)]
    if not len(normalized) == len(gains) == len(roots) == 1 or len(factors) != 3:
        return False
    node = normalized[0]
    options = {**dict(zip(("input", "p", "dim", "eps"), node.args, strict=False)), **node.kwargs}
    return options.get("dim", 1) == 1 and options.get("p", 2.0) == 2 and options.get("eps", 1e-12) == 1e-12


def _factors(node):
    if isinstance(node, fx.Node) and node.target in _MUL and len(node.args) == 2:
        return [f for arg in node.args for f in _factors(arg)]
    return [node]


def _is_root(factor, width):
    """sqrt(C): as a number, or as x.shape[1] ** 0.5."""
    if isinstance(factor, int | float):
        return abs(factor - width**0.5) < 1e-6 * width**0.5
    if isinstance(factor, fx.Node) and factor.target in (operator.pow, pow) and factor.args[1] == 0.5:
        index = factor.args[0]
        return isinstance(index, fx.Node) and index.target is operator.getitem and index.args[1] == 1
    return False


def match(norm, module_of):
    """What around a norm's node one op can do: nothing where a tensor changes in between, for the op reads all late."""
    nodes, last, scale, shift, other = [norm], norm, None, None, _other(norm, module_of)
    film = _film(norm)
    if film is not None:
        scale, shift, middle = film
        nodes += middle
        last = middle[-1]
    activation = _silu(last, module_of)
    nodes += activation
    first = norm if other is None else norm.args[0]
    if any(_mutates(node, module_of) for node in _after(first, nodes[-1])):
        return Match(norm, None, None, None, False, (norm,))
    return Match(norm, other, scale, shift, bool(activation), tuple(nodes))


def _after(first, last):
    """The nodes between two."""
    while first is not last and (first := first.next) is not last:
        yield first


def _mutates(node, module_of):
    """Whether a node writes into a tensor, as far as its name or option says so."""
    if node.op == "call_module":
        return getattr(module_of(node.target), "inplace", False) is True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.target in tracing.IN_PLACE or node.kwargs.get("inplace") is True or name.endswith("_")


def _other(norm, module_of):
    """The second operand, where the norm's input is a sum of two that nobody else sees."""
    x = norm.args[0]
    if not isinstance(x, fx.Node) or len(x.users) != 1 or x.kwargs or len(x.args) != 2:
        return None
    sums = x.target in _ADD or (x.target is operator.iadd and _is_own(x.args[0], module_of))
    return x.args[1] if sums and all(isinstance(arg, fx.Node) for arg in x.args) else None


def _is_own(node, module_of):
    """Whether nobody but its one user has what a node returns."""
    return node.op == "call_module" and isinstance(module_of(node.target), _FRESH) and len(node.users) == 1


def _only_user(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def _film(norm):
    """(scale, shift, nodes) of h * (1 + scale) + shift, however it is written; None of anything else."""
    user = _only_user(norm)
    if user is None:
        return None
    if user.target in (torch.addcmul, "addcmul") and len(user.args) == 3 and not user.kwargs:
        shift, factor = user.args[0], next((a for a in user.args[1:] if a is not norm), None)
        scale = _one_plus(factor)
        return None if scale is None or shift is norm else (scale, shift, [user])
    if user.target not in _MUL or len(user.args) != 2:
        return None
    scale = _one_plus(next((a for a in user.args if a is not norm), None))
    total = _only_user(user)
    if scale is None or total is None or total.target not in _ADD or len(total.args) != 2 or total.kwargs:
        return None
    shift = next((a for a in total.args if a is not user), None)
    return (scale, shift, [user, total]) if isinstance(shift, fx.Node) else None


def _one_plus(node):
    """scale, of 1 + scale or scale + 1."""
    if not isinstance(node, fx.Node) or node.target not in _ADD or len(node.args) != 2 or node.kwargs:
        return None
    for one, scale in (node.args, node.args[::-1]):
        if not isinstance(one, fx.Node) and one == 1 and isinstance(scale, fx.Node):
            return scale
    return None


def _silu(node, module_of):
    """The nodes of SiLU of this node alone: a module, F.silu, or h * sigmoid(h)."""
    users = list(node.users)
    if len(users) == 1:
        user = users[0]
        if user.op == "call_module":
            module = module_of(user.target)
            silu = isinstance(module, nn.SiLU) and type(module).forward is nn.SiLU.forward
            return [user] if silu and not tracing.hooked(module) else []
        return [user] if user.target in (F.silu, torch.nn.functional.silu) and user.args[0] is node else []
    if len(users) == 2:
        sigmoid = next((u for u in users if u.target in (torch.sigmoid, F.sigmoid, "sigmoid")), None)
        product = next((u for u in users if u.target in _MUL), None)
        if sigmoid is not None and product is not None and set(product.args) == {node, sigmoid}:
            return [sigmoid, product] if len(sigmoid.users) == 1 else []
    return []


def replace(graph, found, weight, bias, groups, eps):
    """Puts the fused op where the match lies; groups None: an RMS norm."""
    norm = found.norm
    last = found.nodes[-1]
    x = norm.args[0].args[0] if found.other is not None and groups is not None else norm.args[0]
    with graph.inserting_before(last):
        parameters = [name and graph.get_attr(name) for name in (weight, bias)]
        options = dict(scale=found.scale, shift=found.shift, silu=found.silu)
        if groups is None:
            fused = graph.call_function(kernels.rms_norm, (x, parameters[0]), options)
        else:
            options["other"] = found.other
            fused = graph.call_function(kernels.group_norm, (x, *parameters, groups, eps), options)
    last.replace_all_uses_with(fused)
    dead = list(found.nodes[::-1])
    if x is not norm.args[0]:
        dead.append(norm.args[0])
    for node in dead:
        if not node.users:
            graph.erase_node(node)
