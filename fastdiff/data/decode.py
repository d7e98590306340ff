"""One image file to bytes: upright, square, grey or coloured."""

import numpy as np

MAX_PIXELS = 2**27  # 134 million; a file that claims more is refused before it is decoded
_GREY = ("1", "L", "LA", "La")


def decode(source, size=None):
    """uint8 [S, S] of a grey image, [S, S, 3] of any other; S = size, or the image's smaller side.

    The image is turned upright as its EXIF tag says, halved by box filters while its smaller side is at least 2 S,
    resized bicubically until that side is S, and cut to its middle square, as OpenAI's loader does. Of 16 bits the
    upper 8 are kept, alpha is dropped, of an animation the first frame is taken.

    source: a path or a binary file. Raises ValueError for what is broken, no image, of floats or more bits, or
    of more than MAX_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"must be of at most {MAX_PIXELS} pixels, got {image.width} x {image.height}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, which convert() would clip
                image = Image.fromarray(_upper(np.asarray(image)))
            if image.mode == "F":  # on a scale that the file does not tell
                raise ValueError("must be of 8 or 16 bits, got floats")
            image = image.convert("L" if image.mode in _GREY else "RGB")
    except Image.DecompressionBombError:  # Pillow's own limit, as it was when this was called
        raise ValueError(f"must be of at most {MAX_PIXELS} pixels, got more") from None
    except ValueError:
        raise
    except Exception as error:  # each of Pillow's readers has its own for what is broken
        raise ValueError(f"must be a whole image: {error}") from None
    return square(image, size or min(image.size))


def _upper(array):
    """uint8, the upper 8 bits of 16."""
    if array.size and not 0 <= array.min() <= array.max() < 2**16:
        raise ValueError(f"must be of 8 or 16 bits, got values from {array.min()} to {array.max()}")
    return (array >> 8).astype(np.uint8)


def square(image, size):
    """uint8 [size, size] or [size, size, 3] of a Pillow image of mode L or RGB, resized and cut as `decode` says."""
    from PIL import Image

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def side(source):
    """The smaller side of an image file, from its header; None where it is no image."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            return min(image.size)
    except Exception:  # as above
        return None
