"""`accelerate`: which modules get a new forward, and how they get their own back."""

import dataclasses

import torch
from torch import nn

from . import kernels, patterns, rewriting, statements, swapping, tracing
from .probe import error, output
from .report import Report, Site


def accelerate(module, *, channels_last=False, probe=None):
    """Puts `fastdiff.ops.group_norm_silu` into a network's GroupNorms, with the sums, FiLM and SiLU around them.

    Args:
        module: any network: OpenAI's, diffusers', lucidrains', torchvision's, a Sequential. It is changed in place; its
            parameters, state_dict, hooks, copies (deepcopy) and training are as before.
        channels_last: the 4-d weights also become channels_last, which the convolutions of both CPU and GPU prefer.
        probe: arguments of the network, a tuple, to compare its output before and after with, in evaluation mode.

    Each forward that holds norms is traced (torch.fx), the modules below it staying calls; one that cannot be traced
    keeps its own, and its norms are replaced one by one. What a forward's graph depends on beside its tensors (None or
    not, numbers, training) is looked at in each call, and whether an attribute of the module has been set since; not
    what changes within one, nor, by torch.compile, before the next call without it.

    Gradients are as before, but the ops have no second derivative.

    Returns a `Report`: print it; report.undo(), or `fastdiff.restore(module)`, undoes all. Raises ValueError, having
    undone all, where the probe's output differs.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if probe is not None and not isinstance(probe, tuple):
        raise TypeError(f"probe must be a tuple of the network's arguments, got {type(probe).__name__}")
    swapping.restore(module)
    expected = None if probe is None else output(module, probe)
    layouts = _layouts(module)
    report = Report(sites=_Patch(module).sites, _undo=lambda: (swapping.restore(module), _relay(layouts)))
    if channels_last:
        module.to(memory_format=torch.channels_last)
    if probe is not None:
        report.error, tolerance = error(expected, output(module, probe))
        if not report.error <= tolerance:
            report.undo()
            raise ValueError(f"probe must give its output of before within {tolerance}, got {report.error:.1e} off")
    return report


class _Patch:
    """One pass over a network."""

    def __init__(self, root):
        self.root, self.names = root, dict(root.named_modules())
        self.norms = {path: norm for path, m in self.names.items() if (norm := patterns.norm_of(m)) is not None}
        self.found = {}  # path of a norm: its site
        owners = {path: self._owner(path) for path in self.norms}
        self.models = {o for o in owners.values() for p in owners.values() if p != o and _below(p, o)}
        for owner in dict.fromkeys(owners.values()):
            self._owner_of([path for path in self.norms if owners[path] == owner], owner)
        self.sites = [self.found[path] for path in self.norms]

    def _owner(self, path):
        """The nearest module above a norm that is more than a container; else the outermost container."""
        while path:
            path = path.rpartition(".")[0]
            module = self.names[path]
            if not (tracing.is_plain_sequential(module) or isinstance(module, nn.ModuleList | nn.ModuleDict)):
                return path
        return path

    def _owner_of(self, paths, owner):
        """Replaces the norms of one owner: in its forward, or in the parts that have one of their own."""
        if owner in self.models:
            reason, parts = "its forward holds other networks", True
        else:
            reason, parts = self._rewrite(owner), False
        reason = f"{owner or 'the module'}: {reason}" if reason else ""
        for path in [path for path in paths if path not in self.found]:
            sequential = self._sequential(path, owner)
            if sequential is None or self._rewrite(sequential):
                continue
            if not parts:  # what a forward takes apart is replaced piece by piece as well
                site = self.found[path]
                self._alone(path, reason)
                self.found[path] = dataclasses.replace(site, reason=reason)
        self._adjacent(owner, [path for path in paths if path not in self.found])
        for path in [path for path in paths if path not in self.found]:
            self._alone(path, reason)

    def _sequential(self, path, owner):
        """The outermost Sequential between a norm and its owner."""
        above = path.rpartition(".")[0]
        found = None
        while above != owner and above:
            if tracing.is_plain_sequential(self.names[above]):
                found = above
            above = above.rpartition(".")[0]
        return found

    def _rewrite(self, owner):
        """Gives a module a rewritten forward, where its trace holds norms; else the reason why not."""
        module, reason, best = self.names[owner], "no norm is called by its forward", {}
        if owner in self.norms:
            return "it is a norm itself"
        if own := tracing.own_forward(module):
            return own
        for args in rewriting.variants(module):
            try:
                _, matches = rewriting.rewrite(module, args, {}, [arg.dim() for arg in args])
            except tracing.ERRORS as failure:
                reason = f"its forward cannot be traced: {_first_sentence(failure)}"
                continue
            for path, (_, calls) in matches.items():
                best.setdefault(path, []).extend(calls)
        if not best:
            return reason
        swapping.swap(module, rewriting.Rewritten(module))
        for path, calls in best.items():
            full = f"{owner}.{path}" if owner and path else owner or path
            self.found[full] = Site(full, _kind(self.norms[full], calls), True)
        return ""

    def _adjacent(self, owner, paths):
        """h = self.norm(h); h = self.act(h) as two statements of a forward that cannot be traced."""
        module = self.names[owner]
        if tracing.own_forward(module):
            return
        for norm, act in statements.neighbours(tracing.original(module)):
            path = f"{owner}.{norm}" if owner else norm
            silu = getattr(module, act, None)
            if path not in paths or type(silu) is not nn.SiLU or self._shared(silu):
                continue
            if tracing.hooked(silu) or tracing.hooked(self.names[path]):
                continue
            self._alone(path, "", silu=True)
            swapping.swap(silu, lambda module, args, kwargs: args[0])

    def _shared(self, module):
        """Whether more than one module holds it."""
        return sum(value is module for each in self.root.modules() for value in each._modules.values()) != 1

    def _alone(self, path, reason, silu=False):
        """Replaces a norm by itself."""
        module, norm = self.names[path], self.norms[path]
        kind = _kind(norm, []) + (" + SiLU" if silu else "")
        if heard := tracing.hooked(module):
            self.found[path] = Site(path, kind, False, heard)
            return
        swapping.swap(module, _group(silu) if norm.kind == "group" else _rms(norm.weight))
        self.found[path] = Site(path, kind, True, reason)


def _group(silu):
    def forward(module, args, kwargs):
        (x,) = args or kwargs.values()
        return kernels.group_norm(x, module.weight, module.bias, module.num_groups, module.eps, silu=silu)

    return forward


def _rms(weight):
    def forward(module, args, kwargs):
        (x,) = args or kwargs.values()
        return kernels.rms_norm(x, getattr(module, weight))

    return forward


def _kind(norm, matches):
    """What is in one op; in brackets what only some calls have."""
    parts = ["GroupNorm" if norm.kind == "group" else "RMSNorm"]
    for name, has in (("add", "other"), ("FiLM", "scale"), ("SiLU", "silu")):
        having = [bool(getattr(match, has)) for match in matches]
        if any(having):
            parts.insert(0 if name == "add" else len(parts), name if all(having) else f"[{name}]")
    return " + ".join(parts)


def _first_sentence(error):
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    return text or type(error).__name__


def _below(path, owner):
    return path != owner and (not owner or path.startswith(f"{owner}."))


def _layouts(module):
    """The 4-d parameters and their strides."""
    return [(parameter, parameter.stride()) for parameter in module.parameters() if parameter.dim() == 4]


def _relay(layouts):
    for parameter, stride in layouts:
        if parameter.stride() != stride:
            data = parameter.data
            parameter.data = data.new_empty_strided(data.shape, stride).copy_(data)
