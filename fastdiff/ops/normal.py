"""Contract of `normal`."""

import torch

from . import _check, _dispatch, _layout
from . import rng as streams

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "normal(SymInt[] shape, Tensor rng, Tensor sample_ids, int stream, ScalarType dtype, bool channels_last,"
    " str backend) -> Tensor"
)


def normal(
    shape,
    rng,
    sample_ids,
    *,
    stream=streams.INITIAL,
    dtype=torch.float32,
    memory_format=torch.contiguous_format,
):
    """n_i = sqrt(-2 ln u) cos(2 pi v) for even elements i, sin for odd ones, (u, v) from Philox4x32-10 of a counter.

    The key is the seed; the counter (i // 4, sample_id, draw, stream), i the element's place within its sample in
    logical CHW order. So a value depends on (seed, draw, sample_id, stream, i) alone: not on the batch, layout, backend
    (within 4 ulp of float32) or number of threads.

    Args:
        shape: (B, C, *) of the result.
        rng: int64 [2] = (seed bits, draw), see `fastdiff.ops.rng.make_rng`.
        sample_ids: int64 [B] in [0, 2^32), on rng's device.
        stream: constant of the use, one of `fastdiff.ops.rng`.
        dtype: float32, bfloat16, float16 or float64 (the float32 value, widened).
        memory_format: torch.contiguous_format or torch.channels_last.

    Returns [B, C, *] on rng's device. Raises ValueError or TypeError that names the argument.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; Box and Muller, 1958.
    """
    traced = not torch.compiler.is_compiling() and _dispatch.is_tracing()
    shape = tuple(map(int, shape)) if traced else tuple(shape)
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"shape must be (B, C, *) without negative extents, got {shape}")
    if dtype not in _check.FLOATS:
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    _check.is_tensor("rng", rng)
    _check.counters(rng, sample_ids, shape[0], rng.device)
    last = _layout.wants_last(memory_format)
    call = _normal if _dispatch.eager(rng, sample_ids) else torch.ops.fastdiff.normal
    return call(shape, rng, sample_ids, stream, dtype, last, _dispatch.requested())


def _normal(shape, rng, sample_ids, stream, dtype, channels_last, backend):
    out = _layout.empty(shape, channels_last, dtype, rng.device)
    _dispatch.function("normal", backend, out)(out, rng.contiguous(), sample_ids.contiguous(), stream)
    return out


def _fake(shape, rng, sample_ids, stream, dtype, channels_last, backend):
    return _layout.empty(shape, channels_last, dtype, rng.device)


_LIBRARY.impl("normal", _normal, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::normal", _fake, lib=_LIBRARY)
