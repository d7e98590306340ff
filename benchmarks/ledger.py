"""The least bytes that each op moves between memory and chip, by tensor, in any layout: what a floor time is from.

Tests hold the CUDA kernels to it (tests/simt/test_ledger.py). Each function takes the shape (B, C, *) and element sizes
in bytes; small tensors are counted too, of a table what is used.
"""

import math


def normal(shape, size):
    return {"out": math.prod(shape) * size, "rng": 16, "sample_ids": 8 * shape[0]}


def q_sample(shape, x_start_size, size, noise_size=None, flip=False, noise_out=False, distinct_t=None):
    """noise_size: of noise that is given, else it is drawn."""
    B, elements = shape[0], math.prod(shape)
    table = 4 * (B if distinct_t is None else distinct_t)
    moved = {"x_start": elements * x_start_size, "x_t": elements * size, "t": 8 * B, "alpha": table, "sigma": table}
    moved |= {"noise": elements * noise_size} if noise_size else {"rng": 16, "sample_ids": 8 * B}
    moved |= {"flip": B} if flip else {}
    return moved | ({"noise_out": elements * 4} if noise_out else {})


def reverse_step(shape, row, size, model_size, guided=False, input_size=0, copies=1, drawn=False, mask_elements=None):
    """row: its coefficients that are not 0, by name; one row for all samples. input_size: of model_input, 0: none."""
    elements = math.prod(shape)

    def uses(*names):
        return any(row.get(name, 0) for name in names)

    halves = uses("p_m", "c_m", "q_m") * (1 + (guided and uses("w"))) + uses("l_1")
    slots = sum(uses(f"c_{slot}") for slot in (1, 2, 3)) + (row.get("write", -1) >= 0)
    masked = mask_elements is not None
    noise, known_noise = uses("std") and not drawn, masked and uses("k_n") and not drawn
    states = {"x": uses("p_x", "c_x", "q_x"), "out": 1, "extra": uses("g_0", "g_x", "g_v"), "history": slots}
    states |= {"noise": noise, "known": masked and uses("k_0"), "known_noise": known_noise}
    moved = {name: count * elements * size for name, count in states.items()}
    moved |= {"model_output": halves * elements * model_size, "model_input": copies * elements * input_size, "row": 8}
    moved |= {"rows": 4 * 24 + 4 * bool(input_size), "mask": (mask_elements or 0) * size}
    return moved | ({"rng": 16, "sample_ids": 8 * shape[0]} if drawn else {})


def group_norm_silu(shape, size, reads=1, residual=False):
    """The activation alone. reads: 1 where a group's tile fits on chip, else 2. Dropout moves nothing."""
    elements = math.prod(shape)
    moved = {"x": reads * elements * size, "y": elements * size}
    return moved | ({"residual": elements * size} if residual else {})


def group_norm_silu_backward(shape, size, reads=1):
    elements = math.prod(shape)
    return {name: count * elements * size for name, count in (("x", reads), ("grad_y", reads), ("grad_x", 1))}


def diffusion_loss(shape, model_size, x_start_size=0, noise_size=0, pairs=False):
    """x_start_size, noise_size: 0 where the target has no such term, or the noise is drawn, from counters.

    pairs: the output has 2C channels and lies channels last, where what is not wanted shares sectors with what is.
    """
    B, elements = shape[0], math.prod(shape)
    moved = {"model_output": elements * model_size * (1 + pairs), "x_start": elements * x_start_size}
    moved |= {"noise": elements * noise_size, "t": 8 * B, "target_x0": 4 * B, "target_eps": 4 * B, "loss": 4 * B}
    return moved if noise_size else moved | {"rng": 16, "sample_ids": 8 * B}


def diffusion_loss_backward(shape, model_size, x_start_size=0, noise_size=0, pairs=False, learned=False):
    """learned: the output has 2C channels, whose gradient is written."""
    moved = diffusion_loss(shape, model_size, x_start_size, noise_size, pairs)
    moved["grad_loss"] = moved.pop("loss")
    return moved | {"grad": math.prod(shape) * model_size * (1 + learned)}


def vlb_terms(shape, model_size, x_start_size, learned=True):
    """x_t is of the network's dtype."""
    B, elements = shape[0], math.prod(shape)
    moved = {"model_output": elements * model_size * (1 + learned), "x_start": elements * x_start_size}
    return moved | {"x_t": elements * model_size, "t": 8 * B, "table": 32 * B, "terms": 4 * B}


def vlb_terms_backward(shape, model_size, x_start_size, learned=True):
    moved = vlb_terms(shape, model_size, x_start_size, learned)
    moved["grad_terms"] = moved.pop("terms")
    return moved | {"grad": moved["model_output"]}


def rms_norm_silu(shape, size):
    """The activation alone, where a position's channels fit on chip."""
    elements = math.prod(shape)
    return {"x": elements * size, "y": elements * size}


def rms_norm_silu_backward(shape, size):
    elements = math.prod(shape)
    return {name: elements * size for name in ("x", "grad_y", "grad_x")}
