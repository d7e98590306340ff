"""Images out: grids, PNG, arrays."""

import math

import numpy as np
import torch

from ..files import whole


def to_uint8(x):
    """round((x + 1) * 127.5) limited to [0, 255]: [-1, 1] floats to bytes."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(samples, gap=1):
    """uint8 [H', W'] or [H', W', 3]: samples [N, C, H, W] in [-1, 1], C 1 or 3, side by side in about a square."""
    if samples.dim() != 4 or samples.shape[1] not in (1, 3) or len(samples) == 0:
        raise ValueError(f"samples must have shape [N, 1 or 3, H, W], got {list(samples.shape)}")
    N, C, H, W = samples.shape
    columns = math.ceil(math.sqrt(N))
    rows = math.ceil(N / columns)
    sheet = np.zeros((rows * (H + gap) + gap, columns * (W + gap) + gap, C), dtype=np.uint8)
    for i, image in enumerate(to_uint8(samples.cpu()).permute(0, 2, 3, 1).numpy()):
        y, x = gap + i // columns * (H + gap), gap + i % columns * (W + gap)
        sheet[y : y + H, x : x + W] = image
    return sheet[..., 0] if C == 1 else sheet


def save_png(image, path, least=512):
    """Writes a uint8 image, enlarged by a whole factor towards `least` pixels so that small ones can be seen."""
    from PIL import Image

    factor = max(1, least // max(image.shape[:2]))
    with whole(path) as part:
        Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1)).save(part, format="PNG")


def save_npz(samples, path):
    """Writes samples [N, C, H, W] in [-1, 1] as uint8 [N, H, W, C], the one array of an .npz."""
    with whole(path) as part, open(part, "wb") as file:
        np.savez(file, to_uint8(samples.cpu()).permute(0, 2, 3, 1).numpy())
