"""Contract of `q_sample` and of `q_step`, which is the same kernel with the tables of one step."""

import torch

from . import _check, _dispatch, _layout
from . import rng as streams

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "q_sample(Tensor x_start, Tensor t, Tensor alpha, Tensor sigma, Tensor? noise, Tensor? rng, Tensor? sample_ids,"
    " Tensor? flip, int stream, ScalarType dtype, bool channels_last, bool return_noise, str backend)"
    " -> (Tensor, Tensor)"
)


def q_sample(
    x_start,
    t,
    alpha,
    sigma,
    noise=None,
    *,
    rng=None,
    sample_ids=None,
    flip=None,
    stream=streams.TRAINING,
    dtype=None,
    memory_format=torch.preserve_format,
    return_noise=False,
):
    """x_t = alpha[t] * x0 + sigma[t] * noise, with x0 = x_start, or x_start / 127.5 - 1 where that is uint8.

    Args:
        x_start: [B, C, *], floating and already scaled, or uint8.
        t: int64 [B] in [0, T).
        alpha, sigma: [T], float32 (float64 where x_t is float64), made in float64: sqrt(alphas_cumprod) and
            sqrt(1 - alphas_cumprod) for a variance-preserving process.
        noise: like x_start, of any floating dtype; or None: drawn from rng, sample_ids and stream, see `normal`.
        rng, sample_ids: int64 [2] and [B], for noise None alone.
        flip: bool [B]; mirrors those samples of x_start over the last dimension, before the noise. None: none.
        dtype: of x_t; None: x_start's, or float32 for uint8.
        memory_format: of x_t; by default x_start's.
        return_noise: also return the noise used.

    Returns x_t [B, C, *], or (x_t, noise) with noise in float32 (float64 where x_t is float64). The arithmetic is
    float32 (float64) and rounded once. Raises ValueError, TypeError or, on the CPU, IndexError for t outside [0, T); on
    a GPU such a sample is NaN. Not differentiable.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equation 4.
    """
    dtype = _check_q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype)
    last = _layout.wants_last(memory_format, x_start)
    arguments = (x_start, t, alpha, sigma, noise, rng, sample_ids, flip)
    if _dispatch.eager(*arguments):
        x_t, used = _fill(*arguments, stream, dtype, last, return_noise, _dispatch.requested())
    else:
        x_t, used = torch.ops.fastdiff.q_sample(*arguments, stream, dtype, last, return_noise, _dispatch.requested())
    return (x_t, used) if return_noise else x_t


def q_step(x_prev, t, step_alpha, step_sigma, noise=None, **options):
    """x_t = step_alpha[t] * x_{t-1} + step_sigma[t] * noise: one step of the chain, whose steps compose to `q_sample`.

    step_alpha = sqrt(1 - betas) and step_sigma = sqrt(betas) for DDPM; everything else as in `q_sample`.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equation 2.
    """
    return q_sample(x_prev, t, step_alpha, step_sigma, noise, **options)


def _check_q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype):
    shape, source, device = _check.image("x_start", x_start, torch.uint8)
    if dtype is None:
        dtype = torch.float32 if source is torch.uint8 else source
    elif dtype not in _check.FLOATS:
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    B = shape[0]
    _check.is_tensor("alpha", alpha)
    T = (alpha.numel(),)
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    each = "t", t, (B,), torch.int64, "alpha", alpha, T, arithmetic, "sigma", sigma, T, arithmetic
    if noise is not None:
        _check.tensors(device, *each)
        _check.floating("noise", noise, shape, device)
        if rng is not None or sample_ids is not None:
            raise ValueError("rng and sample_ids must be None where noise is given, got both")
    else:
        if rng is None or sample_ids is None:
            raise ValueError("noise must be a tensor where rng or sample_ids is not given, got None")
        _check.counters(rng, sample_ids, B, device, *each)
    if flip is not None:
        _check.tensors(device, "flip", flip, (B,), torch.bool)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    if _check.SYNCHRONISE:
        _check.within("t", t, T[0])
    if _check.differentiating():
        _check.no_gradient("q_sample", x_start=x_start, noise=noise, alpha=alpha, sigma=sigma)
    return dtype


def _noise_like(x_t, channels_last):
    return _layout.empty(x_t.shape, channels_last, torch.promote_types(x_t.dtype, torch.float32), x_t.device)


def _fill(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype, channels_last, return_noise, backend):
    """x_t, and the noise or None."""
    x_start = _layout.dense(x_start)
    x_t = _layout.empty_as(x_start, channels_last, dtype)
    used = _noise_like(x_t, channels_last) if return_noise else None
    if noise is None:
        rng, sample_ids = rng.contiguous(), sample_ids.contiguous()
    else:
        noise = _layout.dense(noise)
    _dispatch.function("q_sample", backend, x_t)(
        x_start, t.contiguous(), alpha.contiguous(), sigma.contiguous(), noise, rng, sample_ids,
        flip if flip is None else flip.contiguous(), stream, x_t, used,
    )  # fmt: skip
    return x_t, used


def _q_sample(x_start, *arguments):
    """The dispatcher's form: always two tensors."""
    x_t, used = _fill(x_start, *arguments)
    return x_t, x_t.new_empty(0) if used is None else used


def _fake(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype, channels_last, return_noise, backend):
    x_t = _layout.empty(x_start.shape, channels_last, dtype, x_start.device)
    return x_t, _noise_like(x_t, channels_last) if return_noise else x_t.new_empty(0)


_LIBRARY.impl("q_sample", _q_sample, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::q_sample", _fake, lib=_LIBRARY)
