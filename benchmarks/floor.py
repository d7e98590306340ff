"""Floor times: the bytes of ledger.py over a GPU's peak bandwidth. Calculated, never measured.

No run can be faster while its tensors come from memory and go there; what stays in a cache may be. Launches are not in
it: where a floor is below a few microseconds they decide.
"""

import torch

from . import ledger

# GB/s. NVIDIA's data sheets: "A100 Tensor Core GPU" (80GB SXM, 2,039 GB/s), "H100 Tensor Core GPU" (SXM, 3.35 TB/s),
# "H200 Tensor Core GPU" (4.8 TB/s), "DGX B200" (64 TB/s of eight).
PEAKS = {"A100 SXM 80GB": 2039, "H100 SXM": 3350, "H200": 4800, "B200": 8000}

IMAGES, LATENTS = (64, 3, 32, 32), (64, 4, 64, 64)
ACTIVATIONS = {(8, 128, 32, 32): 32, (64, 128, 64, 64): 32}  # groups
DTYPES = torch.float32, torch.bfloat16
DDPM = {"p_x": 1, "p_m": 1, "c_x": 1, "c_0": 1, "std": 1}


def cases():
    """(name, bytes by tensor) of each op at shapes that models have; the layout matters to norms alone."""
    for shape in (IMAGES, LATENTS):
        for dtype in DTYPES:
            yield _name("normal", shape, dtype), ledger.normal(shape, dtype.itemsize)
            yield _name("q_sample of uint8", shape, dtype), ledger.q_sample(shape, 1, dtype.itemsize, flip=True)
            step = ledger.reverse_step(shape, DDPM, 4, dtype.itemsize, input_size=dtype.itemsize, drawn=True)
            yield _name("reverse_step, float32 state", shape, dtype), step
            for backward in ("", "_backward"):
                loss = getattr(ledger, f"diffusion_loss{backward}")(shape, dtype.itemsize, 1)
                yield _name(f"diffusion_loss{backward} of uint8", shape, dtype), loss
                terms = getattr(ledger, f"vlb_terms{backward}")(shape, dtype.itemsize, 1)
                yield _name(f"vlb_terms{backward} of uint8", shape, dtype), terms
    for shape, groups in ACTIVATIONS.items():
        for dtype in DTYPES:
            for last in (False, True):
                yield from _norms(shape, groups, dtype, last)


def _norms(shape, groups, dtype, last):
    for backward in ("", "_backward"):
        norm = getattr(ledger, f"group_norm_silu{backward}")(shape, groups, dtype.itemsize, last)
        yield _name(f"group_norm_silu{backward}", shape, dtype, last), norm
    yield _name("rms_norm_silu", shape, dtype, last), ledger.rms_norm_silu(shape, dtype.itemsize, last)


def _name(op, shape, dtype, last=None):
    layout = {None: "", False: " contiguous", True: " channels_last"}[last]
    return f"{op} {list(shape)} {str(dtype).removeprefix('torch.')}{layout}"


def floor_us(moved, peak_gbps):
    """Microseconds that the bytes take."""
    return sum(moved.values()) / peak_gbps / 1e3


def table():
    lines = ["Floor times in microseconds, CALCULATED from bytes and peak bandwidth; nothing here was measured.", ""]
    lines.append("| op | bytes | " + " | ".join(f"{gpu}, {peak} GB/s" for gpu, peak in PEAKS.items()) + " |")
    lines.append("|---|" + "---:|" * (len(PEAKS) + 1))
    for name, moved in cases():
        times = (f"{floor_us(moved, peak):.2f}" for peak in PEAKS.values())
        lines.append(f"| {name} | {sum(moved.values())} | " + " | ".join(times) + " |")
    return "\n".join(lines)
