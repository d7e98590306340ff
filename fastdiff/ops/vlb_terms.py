"""Contract of `vlb_terms` and of its gradient."""

import math

import torch

from . import _autograd, _check, _dispatch, _layout, _loss
from . import vlb_columns as columns

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_INPUTS = (
    "Tensor model_output, Tensor x_start, Tensor x_t, Tensor t, Tensor table, Tensor? flip, Tensor? weight,"
    " Tensor? sample_weight, float bound, bool exact, bool detach_mean, str backend) -> Tensor"
)
_LIBRARY.define(f"vlb_terms({_INPUTS}")
_LIBRARY.define(f"vlb_terms_backward(Tensor grad_terms, {_INPUTS}")
_CDFS = {"tanh": False, "erf": True}


def vlb_terms(
    model_output,
    x_start,
    x_t,
    t,
    table,
    *,
    flip=None,
    weight=None,
    sample_weight=None,
    clip=None,
    cdf="tanh",
    detach_mean=False,
):
    """terms[b] = weight[t] * sample_weight[b] * mean(L) / ln 2, bits per dimension, with row t of `table`:

        x0^   = clip(p_x * x_t + p_m * m)                 m, v: the network's mean and variance channels
        mean  = m where raw is not 0, else r_0 * x0^ + r_x * x_t
        l     = l_0 + l_1 * v                             the log-variance
        L     = KL(N(r_0 * x0 + r_x * x_t, e^l_q) || N(mean, e^l))                                where t > 0
        L     = -ln(F((x0 + 1/255 - mean) e^(-l/2)) - F((x0 - 1/255 - mean) e^(-l/2)))            where t = 0

    F is the normal distribution function, 1 in the upper end where x0 > 0.999 and 0 in the lower where x0 < -0.999.
    Both are computed in logarithms, without loss in the tails. v is not read where l_1 is 0.

    Args:
        model_output: [B, C or 2C, *], any floating dtype, any strides. 2C: halves [mean, raw variance].
        x_start: [B, C, *], floating and already scaled, or uint8, scaled to [-1, 1].
        x_t: like x_start, floating: the network's input.
        t: int64 [B] in [0, T).
        table: [T, 8] float32 (float64 where model_output is float64), made in float64, columns as in
            `fastdiff.ops.vlb_columns`; see `fastdiff.processes.likelihood.vlb_table`.
        flip: bool [B]; mirrors those samples of x_start over the last dimension, as in `q_sample`. None: none.
        weight, sample_weight: [T] and [B] like table; None: 1.
        clip: bound of |x0^|, or None.
        cdf: "erf", F exactly; or "tanh", OpenAI's approximation (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))) / 2, the
            probability at least 1e-12 as theirs, and without gradient below.
        detach_mean: the gradient goes to the variance channels alone, as IDDPM's L_hybrid asks.

    Returns terms [B], float32 (float64 where model_output is float64), as the arithmetic is. Differentiable once, in
    model_output, whose gradient has its dtype and layout. Raises ValueError, TypeError or, on the CPU, IndexError for t
    outside [0, T) and ValueError where l_1 is not 0 and there are no variance channels; on a GPU such a sample is NaN.
    Source: Ho et al. 2020, equations 5, 7 and 13; Nichol and Dhariwal, "Improved denoising diffusion probabilistic
    models", 2021, equations 4, 15 and 16.
    """
    tensors = (model_output, x_start, x_t, t, table, flip, weight, sample_weight)
    _check_vlb_terms(*tensors, clip, cdf, detach_mean)
    bound = math.inf if clip is None else float(clip)
    options = bound, _CDFS[cdf], detach_mean, _dispatch.requested()
    if not _dispatch.eager(*tensors):
        return torch.ops.fastdiff.vlb_terms(*tensors, *options)
    if model_output.requires_grad and torch.is_grad_enabled():
        return _differentiated(*tensors, *options)
    return _forward(*tensors, *options)


def _check_vlb_terms(model_output, x_start, x_t, t, table, flip, weight, sample_weight, clip, cdf, detach_mean):
    _check.is_tensor("table", table)
    shape = table.shape
    if len(shape) != 2 or shape[1] != columns.WIDTH:
        raise ValueError(f"table must have shape [T, {columns.WIDTH}], got {list(shape)}")
    tables, T = (("table", table, shape),), shape[0]
    image, _, device = _loss.check_samples(model_output, x_start, t, tables, T, flip, weight, sample_weight)
    _check.floating("x_t", x_t, image, device)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if cdf not in _CDFS:
        raise ValueError(f"cdf must be one of {', '.join(_CDFS)}, got {cdf!r}")
    if detach_mean and model_output.shape[1] == image[1]:
        raise ValueError("detach_mean must be False where model_output has no variance channels, got True")
    _loss.one_gradient(
        "vlb_terms", model_output, x_start=x_start, x_t=x_t, table=table, weight=weight, sample_weight=sample_weight
    )


def _dense(x_start, x_t, *vectors):
    """All but model_output as backends take it."""
    return _layout.dense(x_start), _layout.dense(x_t), *map(_loss.contiguous, vectors)


def _forward(model_output, *arguments):
    tensors, options, backend = arguments[:7], arguments[7:10], arguments[10]
    terms = _loss.result(model_output)
    function = _dispatch.function("vlb_terms", backend, model_output)
    function(_layout.dense(model_output), *_dense(*tensors), *options, terms)
    return terms


def _gradient(grad_terms, model_output, *arguments):
    options, backend = arguments[7:10], arguments[10]
    grad_terms, others = grad_terms.contiguous(), _dense(*arguments[:7])
    function = _dispatch.function("vlb_terms_backward", backend, model_output)
    return _loss.gradient(model_output, lambda dense, grad: function(grad_terms, dense, *others, *options, grad))


_differentiated = _autograd.of_first(
    _LIBRARY, "vlb_terms", _forward, _gradient, 8, lambda model_output, *rest: _loss.result(model_output)
)
