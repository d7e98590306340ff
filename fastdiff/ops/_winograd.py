"""Which algorithm of convolution a shape gets on the CPU, and the transformed filters, made once for each weight."""

import contextlib
import weakref
from contextvars import ContextVar

import torch

from . import _layout, _memory

DIRECT, SMALL, LARGE = 0, 2, 4  # torch's convolution, F(2x2, 3x3), F(4x4, 3x3): outputs along a side of a tile
COLUMNS = 32  # a multiple of how many filters lie together, at any SIMD level

_allowed = ContextVar("fastdiff_winograd", default=True)
_keeps = ContextVar("fastdiff_winograd_keeps", default=True)


@contextlib.contextmanager
def winograd(allowed):
    """`conv3x3` in this context (thread or task) uses Winograd's algorithm, or torch's convolution alone."""
    token = _allowed.set(bool(allowed))
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed():
    return _allowed.get()


@contextlib.contextmanager
def keeping(kept):
    """What is made of a weight in this context is kept for the next call, or not."""
    token = _keeps.set(kept)
    try:
        yield
    finally:
        _keeps.reset(token)


def choose(B, C, O, H, W):  # noqa: E741
    """DIRECT, SMALL or LARGE: the quickest for this shape, as measured (`MEASURED`, which a test compares).

    Fewer than 16 input channels leave a vector half empty. Fewer than 4 large tiles leave the filters' transform, 36
    numbers for 9, to be read for too few products.
    """
    if not _allowed.get() or C < 16:
        return DIRECT
    return LARGE if B * -(-H // 4) * -(-W // 4) >= 4 else SMALL


# (B, C, O, H, W): the quickest on one thread of an AMD EPYC with AVX-512, by `pytest benchmarks -k conv3x3`, and of an
# older one with AVX2.
MEASURED = {
    (8, 128, 128, 32, 32): LARGE,
    (8, 256, 128, 32, 32): LARGE,
    (8, 384, 128, 32, 32): LARGE,
    (8, 128, 256, 16, 16): LARGE,
    (8, 512, 256, 16, 16): LARGE,
    (8, 256, 256, 8, 8): LARGE,
    (8, 256, 256, 4, 4): LARGE,
    (8, 128, 3, 32, 32): LARGE,
    (8, 3, 128, 32, 32): DIRECT,
    (1, 128, 128, 32, 32): LARGE,
    (1, 256, 256, 16, 16): LARGE,
    (1, 512, 256, 8, 8): LARGE,
    (1, 256, 256, 4, 4): SMALL,
    (1, 512, 256, 4, 4): SMALL,
    (1, 3, 128, 32, 32): DIRECT,
}

# The same of (inputs' gradient, weight's gradient), of one thread of an AMD EPYC without AVX-512: the quickest with the
# forward pass, whose filters are transformed anew. Of 8 maps of 4x4, or of 3 channels, the weight's gradient alone can
# be quicker by tiles; the forward pass then loses more.
MEASURED_GRADIENTS = {
    (8, 128, 128, 32, 32): (LARGE, LARGE),
    (8, 512, 256, 16, 16): (LARGE, LARGE),
    (8, 256, 256, 8, 8): (LARGE, LARGE),
    (32, 256, 256, 4, 4): (LARGE, LARGE),
    (16, 256, 256, 4, 4): (DIRECT, LARGE),
    (8, 256, 256, 4, 4): (DIRECT, DIRECT),
    (128, 16, 16, 8, 8): (LARGE, LARGE),
    (8, 128, 3, 32, 32): (DIRECT, DIRECT),
    (8, 3, 128, 32, 32): (DIRECT, DIRECT),
}


def choose_gradients(B, C, O, H, W):  # noqa: E741
    """(of the inputs, of the weight): the tile, LARGE or DIRECT, of each gradient of a convolution of this shape.

    Filters are transformed anew each time, and the weight's gradient reads and writes 36 sums for 9: few tiles are too
    few for that.
    """
    tiles = B * -(-H // 4) * -(-W // 4)
    if not _allowed.get() or C < 16 or O < 16:
        return DIRECT, DIRECT
    return (LARGE if tiles >= 32 else DIRECT), (LARGE if tiles >= 16 else DIRECT)


_kept = {}  # id(weight) -> Kept


class Kept:
    """What is made of a weight for kernels of a SIMD level, by kind."""

    def __init__(self, weight, level):
        key = id(weight)
        self.weight = weakref.ref(weight, lambda gone: _forget(key, gone))
        self.facts, self.memory = _memory.facts(weight), weight.untyped_storage()
        self.level, self.made = level, {}

    def is_of(self, weight, level):
        return self.weight() is weight and self.level == level and _memory.same(weight, *self.facts)


def kept(weight, kind, level, make):
    """make(), what a kernel of this SIMD level reads in the place of weight; kept while that and the weight's version,
    memory and content (`_memory.facts`) stay. A weight made in inference mode has no version: make() each time.
    """
    if weight.is_inference() or not _keeps.get():
        return make()
    found = _kept.get(id(weight))
    if found is None or not found.is_of(weight, level):
        found = _kept[id(weight)] = Kept(weight, level)
    result = found.made.get(kind)
    if result is None:
        result = found.made[kind] = make()
    return result


def _forget(key, gone):
    """What was kept for a weight that is gone, unless another has its id by now."""
    found = _kept.get(key)
    if found is not None and found.weight is gone:
        del _kept[key]


def filters(weight, tile, pack, level):
    """The transform of weight [O, C, 3, 3] for tiles of this size, 32 ceil(O / 32) C (tile + 2)^2 float32, kept.

    pack(weight, result, tile, back) fills it, in the order of the SIMD level.
    """
    return kept(weight, tile, level, lambda: packed(weight, tile, pack))


def packed(weight, tile, pack, back=False):
    """The same, never kept; `back`: of the convolution that takes the gradient of y to that of x."""
    O, C = weight.shape[1::-1] if back else weight.shape[:2]  # noqa: E741
    with torch.inference_mode(False), torch.no_grad():
        image = _layout.dense(weight.detach().float())
        result = image.new_empty((tile + 2) ** 2, -(-O // COLUMNS), C, COLUMNS)
        pack(image, result, tile, back)
    return result
