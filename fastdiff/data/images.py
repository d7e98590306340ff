"""Images in and out: folders, grids, PNG."""

import math
from pathlib import Path

import numpy as np
import torch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    temporary = Path(f"{path}.part")
    Image.fromarray(enlarged).save(temporary, format="PNG")
    temporary.replace(path)


def load_folder(folder, image_size=None):
    """uint8 [N, 3 (1 where all are grey), S, S] of every image under a folder, in the order of their paths.

    Each is cut to its middle square and resized to S = image_size, by default the first one's smaller side.
    """
    from PIL import Image, UnidentifiedImageError

    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"data must be a folder with images ({', '.join(SUFFIXES)}), got {str(folder)!r} without any")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                image_size = image_size or min(image.size)
                images.append(_square(image, image_size))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"data must hold images, got {str(path)!r}: {error}") from None
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    stacked = torch.from_numpy(np.stack(images))
    return stacked[:, None] if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _square(image, size):
    from PIL import Image

    image = image.convert("L" if image.mode in ("1", "L", "I;16", "LA") else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)
    return np.asarray(image)
