"""Weights, moments and averages dealt out among the ranks, by torch's FSDP2, for networks that no one device holds."""

import copy

import torch
from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def sharded(model):
    """A copy of the model of which each rank holds its part, the first one's weights; called by every rank.

    A unit, gathered when it runs and freed after, is what stands in a list of modules; what is left is one more. The
    copy's parameters are contiguous, as FSDP2 wants them, whatever the model's memory format.
    Source: Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ImportError("shard must be ddp before torch 2.6, got 'fsdp'") from None
    network = copy.deepcopy(model)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    for value in network.state_dict().values():
        torch.distributed.broadcast(value, 0)
    for unit in units(network):
        fully_shard(unit)
    return fully_shard(network)


def units(model):
    """The modules that stand in its containers, outermost first, if they have parameters."""
    found = []
    for module in model.children():
        if isinstance(module, _CONTAINERS):
            inside = (each for child in module.children() for each in _inside(child))
            found += [unit for unit in inside if any(True for _ in unit.parameters())]
        else:
            found += units(module)
    return found


def _inside(module):
    if not isinstance(module, _CONTAINERS):
        return [module]
    return [each for child in module.children() for each in _inside(child)]


def whole(value):
    """A tensor put together from every rank's part, where it is dealt out; all ranks call this together."""
    return value.full_tensor() if is_sharded(value) else value


def local(value):
    """This rank's part of it, sharing its memory."""
    return value.to_local() if is_sharded(value) else value


def is_sharded(value):
    return hasattr(value, "full_tensor")


@torch.no_grad()
def fill(target, value):
    """target <- value, whole; a target that is dealt out takes its part. All ranks call this together."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype).contiguous()
        target, value = target.to_local(), distribute_tensor(value, target.device_mesh, target.placements).to_local()
    target.copy_(value)


def on_cpu(tensors, keep=True):
    """{name: a copy, whole and on the CPU}; where not to keep, nothing. All ranks call this together."""
    copies = {}
    for name, value in tensors.items():
        value = whole(value.detach())
        if keep:
            copies[name] = value.to("cpu", copy=True).contiguous()
    return copies
