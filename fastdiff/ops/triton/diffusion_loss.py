"""mean (m - (a x0 + b noise))^2 of each sample and its gradient in m, in Triton."""

import triton
import triton.language as tl

from .loss import factor, run_gradient, run_sums, start, total
from .philox import normals
from .tiles import locate, offsets, read, write


@triton.jit
def differences(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, sample, c, s, i, inside,
                blocks, C, N, W, T, stream_id, LEARNED: tl.constexpr, MODEL_LAST: tl.constexpr,
                X_START_LAST: tl.constexpr, NOISE_LAST: tl.constexpr):
    """m - (a x0 + b noise); a coefficient of 0 reads nothing."""
    base = sample * N
    step = tl.load(t + sample)
    known = (step >= 0) & (step < T)
    a = tl.load(target_x0 + step, mask=known, other=float("nan"))
    b = tl.load(target_eps + step, mask=known, other=float("nan"))
    x0 = start(x_start, flip, sample, base, c, s, i, C, W, tl.where(a != 0, inside, False), X_START_LAST)
    z = tl.zeros(inside.shape, tl.float32)
    if noise is None:
        if b != 0:
            z = normals(rng, sample_ids, sample, stream_id, blocks, inside.shape[0], inside.shape[1])
    else:
        z = read(noise + base, offsets(c, s, i, C, NOISE_LAST), tl.where(b != 0, inside, False))
    output, channels = model_output + (2 * base if LEARNED else base), 2 * C if LEARNED else C
    m = read(output, offsets(c, s, i, channels, MODEL_LAST), inside)
    return m - tl.fma(z, b, x0 * a)


@triton.jit(do_not_specialize=["stream_id", "T"])
def diffusion_loss_kernel(model_output,                # [B, C or 2C, S]
                          x_start,                     # [B, C, S], any dtype
                          t,                           # [B] int64
                          target_x0, target_eps,       # [T] float32
                          noise,                       # [B, C, S] or None: drawn
                          rng, sample_ids,             # [2], [B] int64, or None
                          flip,                        # [B] bool or None
                          partial,                     # [B, tiles]
                          C, S, N, W, T, tiles, stream_id, LEARNED: tl.constexpr, MODEL_LAST: tl.constexpr,
                          X_START_LAST: tl.constexpr, NOISE_LAST: tl.constexpr, ORDER: tl.constexpr, FULL: tl.constexpr,
                          ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, blocks = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    d = differences(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, sample, c, s, i,
                    inside, blocks, C, N, W, T, stream_id, LEARNED, MODEL_LAST, X_START_LAST, NOISE_LAST)
    squares = tl.fma(d, d, 0.0)  # a product would be contracted with the first sum, in each lane another one
    tl.store(partial + tl.program_id(0), total(squares, inside))


@triton.jit(do_not_specialize=["stream_id", "T"])
def diffusion_loss_backward_kernel(grad_loss,            # [B]
                                   model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip,
                                   weight, sample_weight,
                                   grad,                 # like model_output
                                   C, S, N, W, T, tiles, stream_id, LEARNED: tl.constexpr, MODEL_LAST: tl.constexpr,
                                   X_START_LAST: tl.constexpr, NOISE_LAST: tl.constexpr, ORDER: tl.constexpr,
                                   FULL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    sample, c, s, i, inside, blocks = locate(C, S, N, tiles, ORDER, FULL, ROWS, COLUMNS, INDEX)
    d = differences(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, sample, c, s, i,
                    inside, blocks, C, N, W, T, stream_id, LEARNED, MODEL_LAST, X_START_LAST, NOISE_LAST)
    d *= 2.0 * tl.load(grad_loss + sample) * factor(t, weight, sample_weight, sample, T) / tl.cast(N, tl.float32)
    channels = 2 * C if LEARNED else C
    base = sample * N * (2 if LEARNED else 1)
    write(grad + base, offsets(c, s, i, channels, MODEL_LAST), d, inside)
    if LEARNED:
        write(grad + base, offsets(c + C, s, i + N, channels, MODEL_LAST), tl.zeros_like(d), inside)


def diffusion_loss(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, weight, sample_weight,
                   stream, loss):  # fmt: skip
    """Fills loss [B]; a t outside [0, T) makes its sample NaN."""
    images = dict(MODEL_LAST=model_output, X_START_LAST=x_start, NOISE_LAST=noise)
    run_sums(
        diffusion_loss_kernel, images, True, 1.0, loss, t, weight, sample_weight, target_x0.numel(), x_start,
        model_output=model_output, target_x0=target_x0, target_eps=target_eps, noise=noise, rng=rng,
        sample_ids=sample_ids, flip=flip, stream_id=stream,
    )  # fmt: skip


def diffusion_loss_backward(grad_loss, model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip,
                            weight, sample_weight, stream, grad):  # fmt: skip
    """Fills grad, like model_output."""
    images = dict(MODEL_LAST=model_output, X_START_LAST=x_start, NOISE_LAST=noise)
    run_gradient(
        diffusion_loss_backward_kernel, images, True, x_start, grad_loss=grad_loss, model_output=model_output, t=t,
        target_x0=target_x0, target_eps=target_eps, noise=noise, rng=rng, sample_ids=sample_ids, flip=flip,
        weight=weight, sample_weight=sample_weight, grad=grad, T=target_x0.numel(), stream_id=stream,
    )  # fmt: skip
