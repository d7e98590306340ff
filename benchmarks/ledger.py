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


def group_norm_reads(shape, groups, size, last, backward=False):
    """How often the activation is read: 1 where a block of the CUDA kernels holds whole groups, else 2.

    A block has 512 threads of 64 elements, 32 in the backward pass, in vectors of 16 bytes. Where a vector would be of
    two channels it has half of them; the backward pass then has a quarter. Channels last, a block has the least number
    of groups whose channels fill sectors of 32 bytes.
    """
    C, S = shape[1], math.prod(shape[2:])
    D, vector, held = C // groups, 16 // size, 32 if backward else 64
    if last or S == 1:
        if C % vector or all(k * D % vector for k in range(1, vector + 1)):
            vector, held = 1, held // 2
        width = min(next((k for k in range(1, 32 // size + 1) if k * D * size % 32 == 0), 1), groups) * D
        return 1 if width <= 512 and -(-width // vector) * -(-S // (held // vector)) <= 512 else 2
    room = 512 * held if S % vector == 0 else 256 * held // (2 if backward else 1)
    return 1 if room >= D * S and D <= 512 else 2


def _terms(shape, weight_size, films):
    """What is read of each channel: weight and bias, and those of add, scale and shift that there are, by size."""
    B, C = shape[:2]
    return {"weight": C * weight_size, "bias": C * weight_size} | {name: B * C * size for name, size in films.items()}


def group_norm_silu(shape, groups, size, last, weight_size=4, residual=False, dropout=False, records=0, **films):
    """films: sizes of add, scale and shift, those that there are. Each small tensor is counted once.

    records: of 16 bytes in the workspace for each sample and group, where groups are read twice, the chunks' and, where
    these are merged in a launch of their own, one more. Dropout's mask moves nothing.
    """
    B, elements = shape[0], math.prod(shape)
    reads = group_norm_reads(shape, groups, size, last)
    moved = {"x": reads * elements * size, "y": elements * size, "mean": 4 * B * groups, "rstd": 4 * B * groups}
    moved |= _terms(shape, weight_size, films) | {"workspace": 2 * 16 * B * groups * records}
    moved |= {"residual": elements * size} if residual else {}
    return moved | ({"rng": 16, "sample_ids": 8 * B} if dropout else {})


def group_norm_silu_backward(shape, groups, size, last, weight_size=4, dropout=False, chunks=0, **films):
    """With every gradient. chunks: a group's along its positions, where it is read twice."""
    B, C, elements = *shape[:2], math.prod(shape)
    reads = group_norm_reads(shape, groups, size, last, backward=True)
    moved = {"x": reads * elements * size, "grad_y": reads * elements * size, "grad_x": elements * size}
    terms = _terms(shape, weight_size, films)
    moved |= terms | {f"grad_{name}": count for name, count in terms.items()}
    means = 8 * B * groups * (1 + (reads - 1) + ("add" in films))
    moved |= {"mean": 4 * B * groups, "rstd": 4 * B * groups, "workspace": 2 * 16 * B * C * (1 + chunks) + means}
    return moved | ({"rng": 16, "sample_ids": 8 * B} if dropout else {})


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


def rms_norm_chunks(shape, size, last, backward=False):
    """Chunks of channels; 1: a block of the CUDA kernels holds all channels of its positions, and reads them once.

    A thread has 64 elements, 32 in the backward pass, in vectors of 16 bytes. A block has at most 512 threads; channels
    last, a position's channels are one vector for each; channels first, each line fills a sector of 32 bytes.
    """
    C, vector = shape[1], 16 // size
    return -(-C // (512 * vector if last else 256 * (32 if backward else 64) // vector))


def rms_norm_silu(shape, size, last, weight_size=4, **films):
    """films: sizes of scale and shift, those that there are. All chunks but one are read twice."""
    elements, chunks = math.prod(shape), rms_norm_chunks(shape, size, last)
    x = elements * size * (2 * chunks - 1) // chunks
    terms = _terms(shape, weight_size, films)
    del terms["bias"]
    return {"x": x, "y": elements * size} | terms


def rms_norm_silu_backward(shape, size, last, tiles, weight_size=4, **films):
    """With every gradient. tiles: a sample's, each with its sums, for which weight and scale are read again."""
    B, C, elements = *shape[:2], math.prod(shape)
    chunks = rms_norm_chunks(shape, size, last, backward=True)
    moved = {"x": elements * size * (3 * chunks - 2) // chunks, "grad_y": elements * size * (2 * chunks - 1) // chunks}
    terms = _terms(shape, weight_size, films)
    del terms["bias"]
    moved |= {name: count * (1 + (name != "shift")) for name, count in terms.items()}
    moved |= {f"grad_{name}": count for name, count in terms.items()}
    return moved | {"grad_x": elements * size, "workspace": B * C * (2 * 8 * tiles + 8 + 4)}
