"""Skip connections joined to what they skipped, of which the backward pass keeps no copy."""

import torch

from ..ops import _dispatch


class _Join(torch.autograd.Function):
    """cat(parts, dim=1), which keeps the parts for those that would keep it."""

    @staticmethod
    def forward(ctx, *parts):
        ctx.save_for_backward(*parts)
        ctx.joins, ctx.found = [part.shape[1] for part in parts], None
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx, gradient):
        ctx.found = None
        return gradient.split(ctx.joins, dim=1)


def _parts(node):
    """What the node of a `join` keeps. A checkpoint gives it out once in a pass, in which all after the first take what
    that one found."""
    if node.found is None or any(part._version != version for part, version in node.found):
        node.found = [(part, part._version) for part in node.saved_tensors]
    return [part for part, _ in node.found]


def join(h, skip):
    """[h, skip] along the channels; h, skip [B, C, H, W] of their own widths.

    Where gradients are recorded, what `keeping_parts` calls keeps h and skip instead. The way down keeps skip already,
    so that a joined image costs h's bytes, not both.
    """
    recorded = torch.is_grad_enabled() and (h.requires_grad or skip.requires_grad)
    if recorded and _dispatch.eager(h, skip):
        return _Join.apply(h, skip)
    return torch.cat([h, skip], dim=1)


def keeping_parts(module, x):
    """module(x), where the backward pass keeps the parts of x, if `join` made it, and joins them once more."""
    node = x.grad_fn if torch.is_grad_enabled() and _dispatch.eager(x) else None
    if not hasattr(node, "joins"):
        return module(x)
    address, shape = x.data_ptr(), x.shape

    def pack(tensor):
        return node if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(kept):
        return torch.cat(_parts(node), dim=1) if kept is node else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return module(x)
