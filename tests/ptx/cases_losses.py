"""The calls of cases.py for the losses and their gradients, and the list of all."""

import math

import torch

from fastdiff.processes.likelihood import vlb_table
from tests.ops.losses import at, process

from .cases import (
    BLOCKS,
    PAGES,
    ROWS,
    TIMESTEPS,
    Case,
    group_norm_silu,
    group_norm_silu_backward,
    images_of,
    normal,
    q_sample,
    reverse_step,
    rms_norm_silu,
    rms_norm_silu_backward,
)

WIDE, NARROW, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES, LAYOUTS = (WIDE, NARROW, HALF), (False, True)
LOSSES, TERMS = ("", "learned", "large", "odd", "even"), ("bound", "large", "decoder", "exact", "odd")
STATES = ("odd", "narrow", "narrow odd", "narrow even", "narrow learned", "narrow learned even")
LARGE = (2, 3, 64, 64)  # a sample is several chunks


def backward_of(op, backward):
    return f"{op}_backward" if backward else op


def upstream(data, backward, value):
    """What the forward pass fills and what the backward pass begins with."""
    B = data.shape[0]
    return {f"grad_{value}": data.numbers(B)} if backward else {value: data.unset(B)}


def output_shape(data, learned):
    B, C, *space = data.shape
    return B, C * (1 + learned), *space


def diffusion_loss(dtype, last, variant, backward):
    """Of uint8 images, the noise drawn, with both weights. learned: the output has a variance, not read; large."""
    shape = LARGE if variant == "large" else images_of(variant)

    def make(data):
        whole = output_shape(data, variant == "learned")
        given = dict(model_output=data.image(shape=whole), x_start=data.image(torch.uint8), t=data.t(), stream=3)
        given |= {name: data.table(TIMESTEPS) for name in ("target_x0", "target_eps", "weight")}
        gradient = dict(grad=data.empty(shape=whole)) if backward else {}
        return {**given, **data.counters(), "flip": torch.tensor([True, False]), "sample_weight": data.table(2),
                **upstream(data, backward, "loss"), **gradient}  # fmt: skip

    return Case(backward_of("diffusion_loss", backward), variant, dtype, last, make, shape)


def vlb_terms(dtype, last, variant, backward):
    """A learned variance. bound and large: t > 0; decoder: t = 0, by the approximation; exact: t = 0, with erf."""
    shape = LARGE if variant == "large" else images_of(variant)

    def make(data):
        decoder, setting = variant in ("decoder", "exact"), process()
        whole, t = output_shape(data, True), torch.tensor([0, 0] if decoder else [500, 3])
        x_start = data.image(torch.uint8)
        x0, noise = x_start.double() / 127.5 - 1, data.image(torch.float64)
        x_t = (at(setting.alpha, t, x0) * x0 + at(setting.sigma, t, x0) * noise).to(dtype)
        output = torch.cat([noise + 0.3 * data.image(torch.float64), 0.5 * data.image(torch.float64)], 1)
        given = dict(model_output=data.laid_out(output.to(dtype)), x_start=x_start, x_t=data.laid_out(x_t), t=t,
                     table=vlb_table(setting, "learned_range").float(), bound=math.inf, exact=variant == "exact",
                     detach_mean=False)  # fmt: skip
        return given | upstream(data, backward, "terms") | (dict(grad=data.empty(shape=whole)) if backward else {})

    return Case(backward_of("vlb_terms", backward), variant, dtype, last, make, shape)


def _cases():
    for dtype in DTYPES:
        for last in LAYOUTS:
            yield from (normal(dtype, last, variant) for variant in ("", "odd", "even"))
            for source in (torch.uint8, WIDE):
                yield from (q_sample(dtype, last, source, variant) for variant in ("drawn", "given"))
            yield from (q_sample(dtype, last, torch.uint8, variant) for variant in ("training", "odd"))
            yield from (reverse_step(dtype, last, variant) for variant in (*ROWS, *STATES))
            for op in (group_norm_silu, group_norm_silu_backward):
                yield from (op(dtype, last, variant) for variant in BLOCKS)
            for op in (rms_norm_silu, rms_norm_silu_backward):
                yield from (op(dtype, last, variant) for variant in PAGES)
            for backward in (False, True):
                yield from (diffusion_loss(dtype, last, variant, backward) for variant in LOSSES)
                yield from (vlb_terms(dtype, last, variant, backward) for variant in TERMS)


CASES = {case.name: case for case in _cases()}
