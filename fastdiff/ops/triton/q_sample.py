"""x_t = alpha[t] * x_start + sigma[t] * noise, in Triton."""

import triton
import triton.language as tl

from .philox import normals
from .tiles import channels_last, device_of, locate, offsets, plan_tiles, read, write


@triton.jit
def scaled(x_start, offset, inside):
    """x_start as float32; uint8 scaled to [-1, 1]."""
    value = read(x_start, offset, inside)
    if x_start.dtype.element_ty == tl.uint8:
        value = (2.0 * value - 255.0) * (1 / 255)  # exact before the product: no cancellation near 0
    return value


@triton.jit(do_not_specialize=["stream_id", "T"])
def q_sample_kernel(x_start,     # [B, C, S], any dtype
                    t,           # [B] int64
                    alpha,       # [T] float32
                    sigma,       # [T] float32
                    noise,       # [B, C, S] or None: drawn
                    rng,         # [2] int64 or None
                    sample_ids,  # [B] int64 or None
                    flip,        # [B] bool or None
                    x_t,         # [B, C, S]
                    noise_out,   # [B, C, S] float32, laid out as x_t, or None
                    C, S, N, W, T, tiles, stream_id,
                    X_START_LAST: tl.constexpr, NOISE_LAST: tl.constexpr, X_T_LAST: tl.constexpr, ORDER: tl.constexpr,
                    FULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, blocks = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    base = sample * N
    step = tl.load(t + sample)
    known = (step >= 0) & (step < T)
    a = tl.load(alpha + step, mask=known, other=float("nan"))
    b = tl.load(sigma + step, mask=known, other=float("nan"))

    if flip is None:
        x0 = scaled(x_start + base, offsets(c, s, i, C, X_START_LAST), inside & known)
    elif tl.load(flip + sample):
        mirror = W - 1 - 2 * (s % W)
        x0 = scaled(x_start + base, offsets(c, s + mirror, i + mirror, C, X_START_LAST), inside & known)
    else:
        x0 = scaled(x_start + base, offsets(c, s, i, C, X_START_LAST), inside & known)

    if noise is None:
        z = normals(rng, sample_ids, sample, stream_id, blocks, ROWS, COLUMNS)
    else:
        z = read(noise + base, offsets(c, s, i, C, NOISE_LAST), inside)

    offset = offsets(c, s, i, C, X_T_LAST)
    write(x_t + base, offset, tl.fma(a, x0, b * z), inside)
    if noise_out is not None:
        write(noise_out + base, offset, z, inside)


def q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, x_t, noise_out):
    """Fills x_t [B, C, *], and noise_out where given; a t outside [0, T) makes its sample NaN."""
    if x_t.numel() == 0:
        return
    layouts = dict(X_START_LAST=channels_last(x_start), NOISE_LAST=channels_last(noise), X_T_LAST=channels_last(x_t))
    if noise is not None and flip is None and all(layouts.values()):  # no element has to be told from another
        layouts = dict.fromkeys(layouts, False)
    tiles = plan_tiles(x_t, any(layouts.values()), draws=noise is None)
    with device_of(x_t):
        q_sample_kernel[tiles.grid](x_start, t, alpha, sigma, noise, rng, sample_ids, flip, x_t, noise_out,
                                    W=x_t.shape[-1] if x_t.dim() > 2 else 1, T=alpha.numel(), stream_id=stream,
                                    **layouts, **tiles.arguments)
