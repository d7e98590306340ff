"""Calls of the ops' host functions, at shapes that models have: which kernels they launch, and how, is theirs to say.

`Case.arguments(new)` are those of the function `op` of fastdiff.ops.triton and fastdiff.ops.native alike;
`new(*shape, dtype=torch.float32, last=False)` makes a tensor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

IMAGES, LATENTS = (64, 3, 32, 32), (8, 4, 64, 64)
BLOCKS = {  # of group_norm_silu: a group fits on chip, with or without all terms; it does not; its rows are no vectors
    "": (16, 128, 32, 32),
    "film": (16, 128, 32, 32),
    "large": (2, 256, 128, 128),
    "odd": (16, 128, 15, 15),
    "dropout": (16, 128, 32, 32),    # and a residual; also where a group does not fit, and rows are no vectors
    "large dropout": (2, 256, 128, 128),
    "odd dropout": (16, 128, 15, 15),
}
PAGES = {  # of rms_norm_silu: a position's channels fit on chip, with or without all terms; they do not; neither fits
    "": (16, 256, 32, 32),
    "film": (16, 256, 32, 32),
    "wide": (2, 8192, 8, 8),
    "odd": (16, 129, 15, 15),
}
GROUPS, TIMESTEPS, COLUMNS = 32, 1000, 24
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.uint8: "u8"}
LAYOUTS = {False: "first", True: "last"}


@dataclass(frozen=True)
class Case:
    op: str
    dtype: torch.dtype  # of the result
    last: bool  # channels_last
    variant: str
    arguments: Callable

    @property
    def name(self):
        return " ".join(filter(None, (self.op, NAMES[self.dtype], LAYOUTS[self.last], self.variant)))


def maker(device):
    """`new` of tensors on a device; zeros, which are indices in range."""

    def new(*shape, dtype=torch.float32, last=False):
        tensor = torch.zeros(shape, dtype=dtype, device=device)
        return tensor.to(memory_format=torch.channels_last) if last else tensor

    return new


def _counters(new, B, drawn=True):
    """rng and sample_ids."""
    return (new(2, dtype=torch.int64), new(B, dtype=torch.int64)) if drawn else (None, None)


def normal(dtype, last, shape=IMAGES):
    return Case("normal", dtype, last, "", lambda new: (
        new(*shape, dtype=dtype, last=last), *_counters(new, shape[0]), 0))  # fmt: skip


def q_sample(start, dtype, last, given=False, training=False, shape=IMAGES):
    """given: noise; training: a flip, and the drawn noise returned."""
    B = shape[0]

    def arguments(new):
        noise = new(*shape, last=last) if given else None
        flip, noise_out = (new(B, dtype=torch.bool), new(*shape, last=last)) if training else (None, None)
        table = new(TIMESTEPS)
        return (new(*shape, dtype=start, last=last), new(B, dtype=torch.int64), table, table, noise,
                *_counters(new, B, not given), flip, 3, new(*shape, dtype=dtype, last=last), noise_out)  # fmt: skip

    variant = " ".join(filter(None, (f"of {NAMES[start]}", given and "given", training and "training")))
    return Case("q_sample", dtype, last, variant, arguments)


def reverse_step(dtype, last, variant="", shape=LATENTS):
    """A float32 state, a network of the dtype and layout. variant: guided, learned (variance), history, masked, given
    (noise) or none of these, which is DDPM's step."""
    B, C, *size = shape

    def arguments(new):
        drawn = variant != "given"
        state, noise = new(*shape), None if drawn else new(*shape)
        output = new(B * (1 + (variant == "guided")), C * (1 + (variant == "learned")), *size, dtype=dtype, last=last)
        copies = 2 if variant == "guided" else 1
        model_input = new(copies * B, C, *size, dtype=dtype, last=last)
        history = new(3, *shape) if variant == "history" else None
        mask, known = (new(B, 1, *size), new(*shape)) if variant == "masked" else (None, None)
        return (state, output, new(50, COLUMNS), new(1, dtype=torch.int64), state, model_input, history, noise,
                *_counters(new, B, drawn), None, mask, known, None, None, None, None)  # fmt: skip

    return Case("reverse_step", dtype, last, variant, arguments)


def _terms(new, B, C, film):
    """add, scale and shift: the latter two halves of one tensor, as networks make them."""
    if not film:
        return None, None, None
    both = new(B, 2 * C)
    return new(B, C), both[:, :C], both[:, C:]


def dropped(variant):
    return variant.endswith("dropout")


def _drop(new, B, variant):
    """rng, sample_ids, threshold, factor, stream."""
    return (*_counters(new, B), 2**30, 4 / 3, 256) if dropped(variant) else ()


def group_norm_silu(dtype, last, variant=""):
    shape, film = BLOCKS[variant], variant == "film"
    B, C = shape[:2]

    def arguments(new):
        x, y = (new(*shape, dtype=dtype, last=last) for _ in range(2))
        residual = (new(*shape, dtype=dtype, last=last),) if dropped(variant) else ()
        return (x, new(C), new(C), GROUPS, 1e-5, *_terms(new, B, C, film), True, y, new(B, GROUPS), new(B, GROUPS),
                *residual, *_drop(new, B, variant))  # fmt: skip

    return Case("group_norm_silu", dtype, last, variant, arguments)


def group_norm_silu_backward(dtype, last, variant=""):
    shape, film = BLOCKS[variant], variant == "film"
    B, C = shape[:2]

    def arguments(new):
        grad_y, x, grad_x = (new(*shape, dtype=dtype, last=last) for _ in range(3))
        gradients = [new(B, C) if film else None for _ in range(3)]
        return (grad_y, x, new(B, GROUPS), new(B, GROUPS), new(C), new(C), GROUPS, *_terms(new, B, C, film), True,
                grad_x, new(C), new(C), *gradients, *_drop(new, B, variant))  # fmt: skip

    return Case("group_norm_silu_backward", dtype, last, variant, arguments)


def _outputs(new, dtype, last, learned, count):
    """count tensors like a network's output, of 2C channels where it is learned."""
    B, C, *size = IMAGES
    return [new(B, C * (1 + learned), *size, dtype=dtype, last=last) for _ in range(count)]


def diffusion_loss(dtype, last, learned=False, backward=False):
    """Of uint8 images, the noise drawn, with both weights. learned: the output has a variance that is not read."""
    B = IMAGES[0]

    def arguments(new):
        output, grad = _outputs(new, dtype, last, learned, 2)
        table, t, weights = new(TIMESTEPS), new(B, dtype=torch.int64), new(B)
        start = new(*IMAGES, dtype=torch.uint8, last=last)
        inputs = (output, start, t, table, table, None, *_counters(new, B), new(B, dtype=torch.bool), table, weights, 3)
        return (weights, *inputs, grad) if backward else (*inputs, weights)

    name = "diffusion_loss_backward" if backward else "diffusion_loss"
    return Case(name, dtype, last, "learned" if learned else "", arguments)


def vlb_terms(dtype, last, exact=False, backward=False):
    """With a learned variance, by the approximation or exact."""
    B = IMAGES[0]

    def arguments(new):
        output, grad = _outputs(new, dtype, last, True, 2)
        start, x_t = new(*IMAGES, dtype=torch.uint8, last=last), new(*IMAGES, dtype=dtype, last=last)
        t, table = new(B, dtype=torch.int64), new(TIMESTEPS, 8)
        inputs = (output, start, x_t, t, table, None, None, None, math.inf, exact, False)
        return (new(B), *inputs, grad) if backward else (*inputs, new(B))

    name = "vlb_terms_backward" if backward else "vlb_terms"
    return Case(name, dtype, last, "exact" if exact else "", arguments)


def rms_norm_silu(dtype, last, variant=""):
    shape, film = PAGES[variant], variant == "film"

    def arguments(new):
        x, y = (new(*shape, dtype=dtype, last=last) for _ in range(2))
        return (x, new(shape[1]), 0.0, 1e13, *_terms(new, *shape[:2], film)[1:], True, y)

    return Case("rms_norm_silu", dtype, last, variant, arguments)


def rms_norm_silu_backward(dtype, last, variant=""):
    shape, film = PAGES[variant], variant == "film"

    def arguments(new):
        grad_y, x, grad_x = (new(*shape, dtype=dtype, last=last) for _ in range(3))
        gradients = [new(*shape[:2]) if film else None for _ in range(2)]
        return (grad_y, x, new(shape[1]), 0.0, 1e13, *_terms(new, *shape[:2], film)[1:], True, grad_x, new(shape[1]),
                *gradients)  # fmt: skip

    return Case("rms_norm_silu_backward", dtype, last, variant, arguments)


def _cases():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for last in (False, True):
            yield normal(dtype, last)
            yield q_sample(torch.uint8, dtype, last)
            yield q_sample(torch.float32, dtype, last)
            yield reverse_step(dtype, last)
            for op in (group_norm_silu, group_norm_silu_backward):
                yield from (op(dtype, last, variant) for variant in BLOCKS)
            for backward in (False, True):
                yield diffusion_loss(dtype, last, False, backward)
                yield vlb_terms(dtype, last, False, backward)
            for op in (rms_norm_silu, rms_norm_silu_backward):
                yield from (op(dtype, last, variant) for variant in PAGES)
    for last in (False, True):
        yield q_sample(torch.float32, torch.float32, last, given=True)
        yield q_sample(torch.uint8, torch.bfloat16, last, training=True)
        for backward in (False, True):
            yield diffusion_loss(torch.bfloat16, last, True, backward)
            yield vlb_terms(torch.bfloat16, last, True, backward)
        for variant in ("given", "guided", "learned", "history", "masked"):
            yield reverse_step(torch.bfloat16, last, variant)


CASES = {case.name: case for case in _cases()}
