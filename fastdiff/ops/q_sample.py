"""Contract of `q_sample` and of `q_step`, which is the same kernel with the tables of one step."""

import torch

from . import _check, _dispatch, _layout, rng as streams

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_LIBRARY.define(
    "q_sample(Tensor x_start, Tensor t, Tensor alpha, Tensor sigma, Tensor? noise, Tensor? rng, Tensor? sample_ids,"
    " Tensor? flip, int stream, ScalarType dtype, bool channels_last, bool return_noise, str backend) -> (Tensor, Tensor)"
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

    Returns x_t [B, C, *], or (x_t, noise) with noise in float32 (float64 where x_t is float64). The arithmetic is float32
    (float64) and rounded once. Raises ValueError, TypeError or, on the CPU, IndexError for t outside [0, T); on a GPU such
    a sample is NaN. Not differentiable.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equation 4.
    """
    dtype = _check_q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype)
    last = _layout.wants_last(memory_format, x_start)
    plain = _dispatch.eager(x_start, t, alpha, sigma, noise, rng, sample_ids, flip)
    call = _q_sample if plain else torch.ops.fastdiff.q_sample
    x_t, used = call(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype, last, return_noise,
                     _dispatch.requested())  # fmt: skip
    return (x_t, used) if return_noise else x_t


def q_step(x_prev, t, step_alpha, step_sigma, noise=None, **options):
    """x_t = step_alpha[t] * x_{t-1} + step_sigma[t] * noise: one step of the chain, whose steps compose to `q_sample`.

    step_alpha = sqrt(1 - betas) and step_sigma = sqrt(betas) for DDPM; everything else as in `q_sample`.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equation 2.
    """
    return q_sample(x_prev, t, step_alpha, step_sigma, noise, **options)


def _check_q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype):
    _check.is_tensor("x_start", x_start)
    source = x_start.dtype
    if source is not torch.uint8:
        _check.image("x_start", x_start)
    elif x_start.dim() < 2:
        raise ValueError(f"x_start must have shape [B, C, *], got {list(x_start.shape)}")
    if dtype is None:
        dtype = torch.float32 if source is torch.uint8 else source
    elif dtype not in _check.FLOATS:
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    B, device = x_start.shape[0], x_start.device
    _check.tensor("t", t, (B,), torch.int64, device)
    _check.is_tensor("alpha", alpha)
    T = alpha.shape[:1] if alpha.dim() else (1,)
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    _check.tensor("alpha", alpha, T, arithmetic, device)
    _check.tensor("sigma", sigma, T, arithmetic, device)
    if noise is not None:
        _check.floating("noise", noise, x_start.shape, device)
        if rng is not None or sample_ids is not None:
            raise ValueError("rng and sample_ids must be None where noise is given, got both")
    else:
        if rng is None or sample_ids is None:
            raise ValueError("noise must be a tensor where rng or sample_ids is not given, got None")
        _check.counters(rng, sample_ids, B, device)
    if flip is not None:
        _check.tensor("flip", flip, (B,), torch.bool, device)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    if _check.SYNCHRONISE:
        _check.within("t", t, T[0])
    _check.no_gradient("q_sample", {"x_start": x_start, "noise": noise, "alpha": alpha, "sigma": sigma})
    return dtype


def _outputs(x_start, dtype, channels_last, return_noise):
    x_t = _layout.empty(x_start.shape, channels_last, dtype, x_start.device)
    noise_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    shape = x_start.shape if return_noise else (0, 0)
    return x_t, _layout.empty(shape, channels_last and return_noise, noise_dtype, x_start.device)


def _q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype, channels_last, return_noise, backend):
    x_t, used = _outputs(x_start, dtype, channels_last, return_noise)
    _dispatch.run(
        "q_sample", backend, x_t,
        _layout.dense(x_start), t.contiguous(), alpha.contiguous(), sigma.contiguous(), _layout.dense(noise),
        rng if rng is None else rng.contiguous(), sample_ids if sample_ids is None else sample_ids.contiguous(),
        flip if flip is None else flip.contiguous(), stream, x_t, used if return_noise else None,
    )  # fmt: skip
    return x_t, used


def _fake(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, dtype, channels_last, return_noise, backend):
    return _outputs(x_start, dtype, channels_last, return_noise)


_LIBRARY.impl("q_sample", _q_sample, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::q_sample", _fake, lib=_LIBRARY)
