"""How many dimensions a node of a graph has, where that is plain: for forwards that compare len(h.shape)."""

import operator

from torch import fx, nn

_CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_SAME = {
    "add", "clone", "contiguous", "div", "float", "half", "double", "mul", "neg", "silu", "sub", "to", "type",
    "type_as", "chunk", "relu", "sigmoid", "tanh", "addcmul", "gelu", "pow", "truediv", "split", "normalize",
    "group_norm", "interpolate", "dropout", "iadd", "isub", "imul", "itruediv",
}  # fmt: skip


def rank_of(node, modules, tensors):
    """The node's rank; of a sequence of tensors, that of each; None where it is not known.

    modules, tensors: of the traced module, by path; a tensor's rank stands for it.
    """
    inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if node.op == "get_attr":
        return tensors.get(node.target)
    if node.op == "call_module":
        return _of_module(modules[node.target], inputs)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target is operator.getitem:
        return _of_index(node)
    if name not in _SAME or not inputs:
        return None
    known = [arg.meta.get("rank") for arg in (inputs[:1] if name in ("to", "type", "type_as") else inputs)]
    return None if None in known else max(known)


def _of_module(module, inputs):
    for kind, rank in _CONVOLUTIONS.items():
        if isinstance(module, kind):
            return rank
    plain = type(module).__module__.startswith("torch.nn.modules.") or isinstance(module, nn.GroupNorm)
    containers = nn.Flatten | nn.Unflatten | nn.Embedding | nn.RNNBase | nn.EmbeddingBag
    if not plain or isinstance(module, containers) or len(inputs) != 1:
        return None
    return inputs[0].meta.get("rank")


def _of_index(node):
    """Of h[..., None], h[:, :, None, None], and one of a sequence of tensors."""
    value, index = node.args
    rank = value.meta.get("rank") if isinstance(value, fx.Node) else None
    if rank is None:
        return None
    if isinstance(index, int):  # a sequence has its tensors' rank; a tensor has one less
        name = value.target if isinstance(value.target, str) else getattr(value.target, "__name__", "")
        return rank if name in ("chunk", "split") else rank - 1
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        return None
    return rank + sum(i is None for i in index) - sum(isinstance(i, int) for i in index)
