"""Standard normals from the counter RNG (DESIGN 4), in Triton."""

import triton
import triton.language as tl

from .philox import normals
from .tiles import channels_last, device_of, locate, offsets, plan_tiles, write


@triton.jit(do_not_specialize=["stream_id"])
def normal_kernel(out, rng, sample_ids, C, S, N, tiles, stream_id, LAST: tl.constexpr, ORDER: tl.constexpr,
                  FULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, blocks = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    noise = normals(rng, sample_ids, sample, stream_id, blocks, ROWS, COLUMNS)
    write(out + sample * N, offsets(c, s, i, C, LAST), noise, inside)


def normal(out, rng, sample_ids, stream):
    """Fills out [B, C, *] with the normals of (rng, sample_ids, stream)."""
    if out.numel() == 0:
        return
    last = channels_last(out)
    tiles = plan_tiles(out, last, draws=True)
    with device_of(out):
        normal_kernel[tiles.grid](out, rng, sample_ids, stream_id=stream, LAST=last, **tiles.arguments)
