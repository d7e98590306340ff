"""A network's output before and after."""

import torch
from torch.utils import _pytree

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # other dtypes: 0.05


def output(module, probe):
    """Every tensor of the output, in evaluation mode; the network has copies of the arguments to write into."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            own = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, probe)
            return [leaf for leaf in _pytree.tree_leaves(module(*own)) if isinstance(leaf, torch.Tensor)]
    finally:
        for each, training in modes:
            each.training = training


def error(expected, found):
    """max |difference| / max |expected| over the tensors, and what it may be."""
    worst = max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()
        for a, b in zip(found, expected, strict=True)
    )
    return worst, _TOLERANCE.get(expected[0].dtype, 0.05)
