"""Contract of `diffusion_loss` and of its gradient."""

import torch

from . import _autograd, _check, _dispatch, _layout, _loss
from . import rng as streams

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_INPUTS = (
    "Tensor model_output, Tensor x_start, Tensor t, Tensor target_x0, Tensor target_eps, Tensor? noise, Tensor? rng,"
    " Tensor? sample_ids, Tensor? flip, Tensor? weight, Tensor? sample_weight, int stream, str backend) -> Tensor"
)
_LIBRARY.define(f"diffusion_loss({_INPUTS}")
_LIBRARY.define(f"diffusion_loss_backward(Tensor grad_loss, {_INPUTS}")


def diffusion_loss(
    model_output,
    x_start,
    t,
    target_x0,
    target_eps,
    noise=None,
    *,
    rng=None,
    sample_ids=None,
    flip=None,
    weight=None,
    sample_weight=None,
    stream=streams.TRAINING,
):
    """loss[b] = weight[t] * sample_weight[b] * mean((m - (target_x0[t] * x0 + target_eps[t] * noise))^2).

    x0 = x_start, or x_start / 127.5 - 1 where that is uint8; m is model_output, its first C channels where it has 2C. A
    term whose coefficient is 0 is not read. Noise that is drawn is `q_sample`'s of the same counters: it is made again
    here and for the gradient, and never stored.

    Args:
        model_output: [B, C or 2C, *], any floating dtype, any strides.
        x_start: [B, C, *], floating and already scaled, or uint8.
        t: int64 [B] in [0, T).
        target_x0, target_eps: [T], float32 (float64 where model_output is float64), made in float64: 0 and 1 where the
            network predicts eps, -sigma and alpha where v; see `GaussianProcess.target_x0`. Of processes in continuous
            time they are the samples' own, [B], and t is arange(B).
        noise: like x_start, of any floating dtype; or None: drawn from rng, sample_ids and stream, see `normal`.
        rng, sample_ids: int64 [2] and [B], for noise None alone.
        flip: bool [B]; mirrors those samples of x_start over the last dimension, as in `q_sample`. None: none.
        weight: [T] like target_x0, of a timestep: min-SNR, lambda(sigma). None: 1.
        sample_weight: [B] likewise, of a sample: 1 / (T p(t)) where timesteps are drawn with probability p. None: 1.

    Returns loss [B], float32 (float64 where model_output is float64), as the arithmetic is. Differentiable once, in
    model_output, whose gradient has its dtype and layout and is 0 in channels that are not read. Raises ValueError,
    TypeError or, on the CPU, IndexError for t outside [0, T); on a GPU such a sample is NaN.
    Source: Ho et al., "Denoising diffusion probabilistic models", 2020, equation 14.
    """
    tensors = (model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, weight, sample_weight)
    _check_diffusion_loss(*tensors, stream)
    options = stream, _dispatch.requested()
    if not _dispatch.eager(*tensors):
        return torch.ops.fastdiff.diffusion_loss(*tensors, *options)
    if model_output.requires_grad and torch.is_grad_enabled():
        return _differentiated(*tensors, *options)
    return _forward(*tensors, *options)


def _check_diffusion_loss(model_output, x_start, t, target_x0, target_eps, noise, rng, sample_ids, flip, weight,
                          sample_weight, stream):  # fmt: skip
    _check.is_tensor("target_x0", target_x0)
    T = target_x0.numel()
    tables = ("target_x0", target_x0, (T,)), ("target_eps", target_eps, (T,))
    shape, _, device = _loss.check_samples(model_output, x_start, t, tables, T, flip, weight, sample_weight)
    if noise is not None:
        _check.floating("noise", noise, shape, device)
        if rng is not None or sample_ids is not None:
            raise ValueError("rng and sample_ids must be None where noise is given, got both")
    else:
        if rng is None or sample_ids is None:
            raise ValueError("noise must be a tensor where rng or sample_ids is not given, got None")
        _check.counters(rng, sample_ids, shape[0], device)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must be in [0, 2**32), got {stream}")
    _loss.one_gradient(
        "diffusion_loss", model_output, x_start=x_start, target_x0=target_x0, target_eps=target_eps, noise=noise,
        weight=weight, sample_weight=sample_weight,
    )  # fmt: skip


def _dense(x_start, t, target_x0, target_eps, noise, *rest):
    """All but model_output as backends take it."""
    vectors = map(_loss.contiguous, rest)
    x_start, noise = _layout.dense(x_start), _layout.dense(noise)
    return x_start, t.contiguous(), target_x0.contiguous(), target_eps.contiguous(), noise, *vectors


def _forward(model_output, *arguments):
    *tensors, stream, backend = arguments
    loss = _loss.result(model_output)
    function = _dispatch.function("diffusion_loss", backend, model_output)
    function(_layout.dense(model_output), *_dense(*tensors), stream, loss)
    return loss


def _gradient(grad_loss, model_output, *arguments):
    *tensors, stream, backend = arguments
    grad_loss, others = grad_loss.contiguous(), _dense(*tensors)
    function = _dispatch.function("diffusion_loss_backward", backend, model_output)
    return _loss.gradient(model_output, lambda dense, grad: function(grad_loss, dense, *others, stream, grad))


_differentiated = _autograd.of_first(
    _LIBRARY, "diffusion_loss", _forward, _gradient, 11, lambda model_output, *rest: _loss.result(model_output)
)
