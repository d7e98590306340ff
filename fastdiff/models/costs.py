"""What a network costs, level by level."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Level:
    """One of the parts of a network: parameters, FLOPs and bytes of the results of its layers in one forward."""

    name: str
    parameters: int
    flops: int  # a multiply-add is two
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """`levels` in the order of the network; their sums; print() shows a table."""

    levels: tuple
    parameters: int
    flops: int
    activation_bytes: int

    def __str__(self):
        rows = [*self.levels, Level("all", self.parameters, self.flops, self.activation_bytes)]
        width = max(len(row.name) for row in rows)
        head = f"{'':{width}}  {'parameters':>12}  {'GFLOP':>9}  {'activations, MiB':>16}"
        body = [
            f"{r.name:{width}}  {r.parameters:12,}  {r.flops / 1e9:9.3f}  {r.activation_bytes / 2**20:16.1f}"
            for r in rows
        ]
        return "\n".join([head, *body])


def summary(model, shape, **inputs):
    """A `Summary` of one forward of a `UNet`, or of any model(x, t), at x of shape (B, C, H, W).

    The levels are time, conv_in, each of down and up, middle and what ends a `UNet`; else the model's children.
    Activations are the results of the layers (modules without modules in them), as many bytes as each has: the most
    that a backward could keep. inputs: what else the model is called with, such as y. Nothing is computed: the forward
    runs on meta tensors. FLOPs are torch.utils.flop_counter's: convolutions, matrix products and attention.
    """
    parts = _parts(model)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts = {name: [0, 0] for name in parts}
    meta = _on_meta(model)
    with FlopCounterMode(display=False) as counter:
        handles = [h for name, part in _parts(meta).items() for h in _watch(part, counts[name], counter)]
        try:
            dtype = next(meta.parameters()).dtype
            x, t = torch.empty(shape, dtype=dtype, device="meta"), torch.zeros(shape[0], device="meta")
            extra = {name: value.to("meta") for name, value in inputs.items()}
            with torch.no_grad():
                meta(x, t, **extra)
        finally:
            for handle in handles:
                handle.remove()
    levels = tuple(Level(name, parameters[name], *counts[name]) for name in parts)
    total = sum(p.numel() for p in model.parameters())
    return Summary(levels, total, counter.get_total_flops(), sum(level.activation_bytes for level in levels))


def _parts(model):
    """The model's children, and those of lists among them, by name."""
    found = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            found |= {f"{name}.{i}": each for i, each in enumerate(child)}
        else:
            found[name] = child
    return found


def _on_meta(model):
    """A copy without its numbers."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _watch(part, counts, counter):
    """Hooks that add a part's FLOPs and its layers' bytes to counts."""
    starts = []

    def before(module, args):
        starts.append(counter.get_total_flops())

    def after(module, args, output):
        counts[0] += counter.get_total_flops() - starts.pop()

    def layer(module, args, output):
        if isinstance(output, torch.Tensor) and not any(output is value for value in args):
            counts[1] += output.numel() * output.element_size()

    leaves = [module for module in part.modules() if not list(module.children())]
    entries = list(part.children()) if isinstance(part, nn.ModuleDict) else [part]
    entries = [e for entry in entries for e in (entry if isinstance(entry, nn.ModuleList) else [entry])]
    for entry in entries:
        yield entry.register_forward_pre_hook(before)
        yield entry.register_forward_hook(after)
    for leaf in leaves:
        yield leaf.register_forward_hook(layer)
