"""What the backward pass keeps of a U-Net's norms with SiLU."""

import torch

from fastdiff import ops


def saved(function, x):
    """Bytes that the backward pass keeps, each storage once, but for those of x's own leaf."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x).sum().backward()
    return sum(nbytes for nbytes, _ in kept.values())


def test_norms_with_silu_keep_half_of_eagers():
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)
    eager = saved(lambda x: torch.nn.functional.silu(torch.nn.functional.group_norm(x, 8, weight, bias)), x)
    fused = saved(lambda x: ops.group_norm_silu(x, 8, weight, bias), x)
    assert fused <= 0.51 * eager, f"{fused} of {eager} bytes"
