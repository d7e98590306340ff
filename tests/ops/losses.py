"""What the tests of the losses share: a process' inputs, and what autograd makes of a formula."""

import functools

import torch

from fastdiff import GaussianProcess, schedules

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
T = 1000

SHAPES = {
    "even": (4, 4, 8, 8),
    "odd width, last block discards lanes": (3, 3, 5, 7),
    "one channel": (2, 1, 6, 10),
    "one element": (1, 1, 1, 1),
    "two chunks": (2, 4, 36, 40),
    "several chunks": (2, 3, 77, 75),
    "several chunks of tiles": (1, 4, 68, 68),
    "many channels": (2, 20, 6, 6),
    "no space": (3, 5),
    "sequence": (2, 3, 9),
}


@functools.cache
def process(prediction="eps", steps=T):
    return GaussianProcess(schedules.linear(steps), prediction)


def formats(shape):
    return [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]


def images(shape, dtype, device, seed=0):
    """uint8, or values of the 256 levels in [-1, 1] and between them; both ends included."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    x.view(-1)[:3] = torch.tensor([0, 255, 128], dtype=torch.uint8)[: x.numel()]
    return (x if dtype is torch.uint8 else (x.double() / 127.5 - 1).to(dtype)).to(device)


def gaussian(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def clean(x_start, flip, dtype):
    x0 = x_start.cpu().to(dtype)
    x0 = x0 / 127.5 - 1 if x_start.dtype is torch.uint8 else x0
    if flip is not None and x0.dim() > 2:
        x0 = torch.where(flip.cpu().reshape(-1, *(1,) * (x0.dim() - 1)), x0.flip(-1), x0)
    return x0


def at(table, t, like):
    return table[t.cpu()].reshape(-1, *(1,) * (like.dim() - 1))


def with_gradient(function, model_output, upstream):
    """[function(model_output), its gradient where upstream comes in]."""
    leaf = model_output.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, upstream.to(value))
    return [value.detach(), gradient]


def in_pytorch(formula, model_output, upstream):
    """[value, gradient] of formula(model_output, dtype) in float64 and in float32, on the CPU."""
    m = model_output.detach().cpu()
    return [
        with_gradient(lambda leaf, dtype=dtype: formula(leaf, dtype), m.to(dtype), upstream.cpu())
        for dtype in (torch.float64, torch.float32)
    ]
