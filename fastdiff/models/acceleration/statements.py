"""Calls that follow one another in the text of a forward, for those that cannot be traced."""

import ast
import inspect
import itertools
import textwrap

from torch import nn


def neighbours(cls):
    """(a, b) for each `v = self.a(v)` followed by `v = self.b(v)` in a forward whose class uses both just there.

    To make them in __init__, or to ask `if self.a:` first, is no use of them.
    """
    try:
        tree = _parsed(cls.forward)
        used = [name for each in cls.__mro__[: cls.__mro__.index(nn.Module)] for name in _used(_parsed(each))]
    except (OSError, TypeError, SyntaxError):
        return []
    calls = [
        (_own_call(first), _own_call(second))
        for node in ast.walk(tree)
        for body in (getattr(node, "body", None), getattr(node, "orelse", None))
        if isinstance(body, list)
        for first, second in itertools.pairwise(body)
    ]
    pairs = [(a, b) for a, b in calls if a and b and a[1] == b[1]]
    return [(a[0], b[0]) for a, b in pairs if used.count(a[0]) == used.count(b[0]) == 1]


def _parsed(thing):
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def _used(tree):
    """The names of attributes, as often as they are read, but in __init__ and as conditions."""
    made = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    apart = {below for each in made for below in ast.walk(each)}
    apart |= {node.test for node in ast.walk(tree) if isinstance(node, ast.If)}
    return [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node not in apart]


def _own_call(statement):
    """(a, v) of v = self.a(v)."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    target, call = statement.targets[0], statement.value
    plain = isinstance(target, ast.Name) and len(call.args) == 1 and not call.keywords
    if not plain or not isinstance(call.args[0], ast.Name) or call.args[0].id != target.id:
        return None
    function = call.func
    own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self"
    return (function.attr, target.id) if own else None
