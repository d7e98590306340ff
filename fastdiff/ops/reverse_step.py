"""Contract of `reverse_step`: one row of a sampler's plan."""

import torch

from . import _check, _dispatch, _layout, rows as row_table

_LIBRARY = torch.library.Library("fastdiff", "FRAGMENT")
_OPTIONS = (
    "Tensor rows, Tensor row, Tensor(b!)? model_input, Tensor(c!)? history, Tensor? noise, Tensor? rng,"
    " Tensor? sample_ids, Tensor? extra, Tensor? mask, Tensor? known, Tensor? known_noise, Tensor? gain, Tensor? bound,"
    " Tensor? shrink, str backend) -> ()"
)
_LIBRARY.define(f"reverse_step_(Tensor(a!) x, Tensor? model_output, {_OPTIONS}")
_LIBRARY.define(f"reverse_step_out(Tensor x, Tensor? model_output, Tensor(a!) out, {_OPTIONS}")


def reverse_step(
    x,
    model_output,
    rows,
    row,
    *,
    out=None,
    model_input=None,
    history=None,
    noise=None,
    rng=None,
    sample_ids=None,
    extra=None,
    mask=None,
    known=None,
    known_noise=None,
    gain=None,
    bound=None,
    shrink=None,
):
    """One reverse step, x' from x, with the coefficients of row r = row (or row[b] for sample b) of the table `rows`:

        m     = gain * (m_uncond + w * (m_cond - m_uncond))      guided; else gain * m.  v: variance channels (conditional)
        x0    = clip(p_x*x + p_m*m, bound) * shrink + g_0*extra
        s     = exp((l_0 + l_1*v) / 2)                           1 where l_0 = l_1 = 0
        x'    = c_x*x + c_0*x0 + c_m*m + c_1*h0 + c_2*h1 + c_3*h2 + (g_x + g_v*s*s)*extra + std*s*noise
        h[write] = q_x*x + q_0*x0 + q_m*m                        write = -1: none; h0..h2 above are the old history
        x'    = mask*x' + (1 - mask)*(k_0*known + k_n*known_noise)                  only where mask is given
        out   = x';   model_input = c_in(row r + 1, 1 after the last) * x'

    A term whose coefficient is 0 is not read: its tensor may be None or hold NaN. NaN passes the clip.

    Args:
        x: [B, C, *], any floating dtype; the arithmetic is float32 (float64 for float64), rounded once.
        model_output: [B or 2B, C or 2C, *], floating, any layout. 2B: halves [uncond, cond] of a guided call. 2C: halves
            [mean, raw variance].
        rows: [R, 24] float32 (float64 where x is), columns as in `fastdiff.ops.rows`.
        row: int64 [] or [1], or [B]; on x's device and not advanced here.
        out: like x; None: a new tensor; x itself: in place.
        model_input: optional second output [B or 2B, C, *] in the network's dtype and layout; 2B: two equal halves.
        history: [3, B, C, *] of x's dtype, read and written.
        noise, known_noise: like x, or None: drawn from rng int64 [2] and sample_ids int64 [B], streams STEP and KNOWN.
        extra, known: like x.
        mask: [1 or B, 1 or C, *], bool or x's dtype; 1 generates, 0 keeps `known`.
        gain, bound, shrink: float32 [B]; None: 1, the row's bound, 1.

    Returns out. Raises ValueError, TypeError or, on the CPU, IndexError for a row outside [0, R) and ValueError for an input
    that the row needs and that is None, before anything is written; on a GPU such a sample is NaN. Not differentiable.
    Source: the posterior mean of Ho et al. 2020 (equation 7) is one such row, as are DDIM, DPM-Solver and their kin.
    """
    _check_state(x, noise, extra, known, known_noise, mask, history, out)
    _check_network(x, model_output, model_input)
    _check_rows(x, rows, row, gain, bound, shrink)
    if rng is not None or sample_ids is not None:
        _check.counters(rng, sample_ids, x.shape[0], x.device)
    _check.no_gradient("reverse_step", dict(
        x=x, model_output=model_output, noise=noise, extra=extra, mask=mask, known=known, known_noise=known_noise,
        rows=rows, out=out, history=history, model_input=model_input, gain=gain, bound=bound, shrink=shrink,
    ))  # fmt: skip
    options = (model_input, history, noise, rng, sample_ids, extra, mask, known, known_noise, gain, bound, shrink)
    if out is None:
        out = torch.empty_like(x)
    if _dispatch.eager(x, model_output, rows, row, out, *options):
        _reverse_step(x, model_output, out, rows, row, *options, _dispatch.requested())
    elif out is x:
        torch.ops.fastdiff.reverse_step_(x, model_output, rows, row, *options, _dispatch.requested())
    else:
        torch.ops.fastdiff.reverse_step_out(x, model_output, out, rows, row, *options, _dispatch.requested())
    return out


def _check_state(x, noise, extra, known, known_noise, mask, history, out):
    _check.image("x", x)
    shape, dtype, device = x.shape, x.dtype, x.device
    if noise is not None:
        _check.tensor("noise", noise, shape, dtype, device)
    if extra is not None:
        _check.tensor("extra", extra, shape, dtype, device)
    if out is not None and out is not x:
        _check.tensor("out", out, shape, dtype, device)
    if history is not None:
        _check.tensor("history", history, (3, *shape), dtype, device)
    if mask is None:
        if known is not None or known_noise is not None:
            raise ValueError("mask must be a tensor where known or known_noise is given, got None")
        return
    _check.is_tensor("mask", mask)
    B, C = shape[:2]
    if mask.dim() != x.dim() or mask.shape[2:] != shape[2:] or mask.shape[0] not in (1, B) or mask.shape[1] not in (1, C):
        raise ValueError(f"mask must have shape [1 or B, 1 or C, *] for x of shape {list(shape)}, got {list(mask.shape)}")
    _check.tensor("mask", mask, mask.shape, torch.bool if mask.dtype is torch.bool else dtype, device)
    if known is None:
        raise ValueError("known must be a tensor where mask is given, got None")
    _check.tensor("known", known, shape, dtype, device)
    if known_noise is not None:
        _check.tensor("known_noise", known_noise, shape, dtype, device)


def _check_network(x, model_output, model_input):
    B, C, *spatial = x.shape
    for name, value, channels in (("model_output", model_output, (C, 2 * C)), ("model_input", model_input, (C,))):
        if value is None:
            continue
        _check.is_tensor(name, value)
        if value.dim() != x.dim() or value.shape[0] not in (B, 2 * B) or value.shape[1] not in channels:
            wanted = "[B or 2B, C or 2C, *]" if len(channels) == 2 else "[B or 2B, C, *]"
            raise ValueError(f"{name} must have shape {wanted} for x of shape {list(x.shape)}, got {list(value.shape)}")
        _check.floating(name, value, (*value.shape[:2], *spatial), x.device)


def _check_rows(x, rows, row, gain, bound, shrink):
    B, device = x.shape[0], x.device
    _check.is_tensor("rows", rows)
    if rows.dim() != 2 or rows.shape[1] != row_table.WIDTH or rows.shape[0] == 0:
        raise ValueError(f"rows must have shape [R, {row_table.WIDTH}], got {list(rows.shape)}")
    arithmetic = torch.float64 if x.dtype is torch.float64 else torch.float32
    _check.tensor("rows", rows, rows.shape, arithmetic, device)
    _check.is_tensor("row", row)
    if row.dim() > 1 or row.numel() not in (1, B):
        raise ValueError(f"row must have shape [], [1] or [{B}], got {list(row.shape)}")
    _check.tensor("row", row, row.shape, torch.int64, device)
    if _check.SYNCHRONISE:
        _check.within("row", row, rows.shape[0])
    if gain is not None:
        _check.tensor("gain", gain, (B,), torch.float32, device)
    if bound is not None:
        _check.tensor("bound", bound, (B,), torch.float32, device)
    if shrink is not None:
        _check.tensor("shrink", shrink, (B,), torch.float32, device)


def _contiguous(tensor):
    return tensor if tensor is None else tensor.contiguous()


def _reverse_step(x, model_output, out, rows, row, model_input, history, noise, rng, sample_ids, extra, mask, known,
                  known_noise, gain, bound, shrink, backend):  # fmt: skip
    _check.disjoint(
        {"out": out, "history": history, "model_input": model_input},
        {"x": x, "model_output": model_output, "noise": noise, "extra": extra, "mask": mask, "known": known,
         "known_noise": known_noise},
    )  # fmt: skip
    state = _layout.dense(x)
    last = _layout.addressed_last(state)
    dense_out = state if out is x else _like_state(out, last)
    dense_history = history if history is None else _slots(history, last)
    dense_input = _layout.dense(model_input)
    _dispatch.run(
        "reverse_step", backend, x,
        state, _layout.dense(model_output), rows.contiguous(), row if row.dim() else row[None], dense_out, dense_input,
        dense_history, _layout.in_layout(noise, last), _contiguous(rng), _contiguous(sample_ids),
        _layout.in_layout(extra, last), mask if mask is None else _layout.in_layout(mask.to(x.dtype), last),
        _layout.in_layout(known, last), _layout.in_layout(known_noise, last), _contiguous(gain), _contiguous(bound),
        _contiguous(shrink),
    )  # fmt: skip
    for given, dense in ((out, dense_out), (history, dense_history), (model_input, dense_input)):
        if given is not dense:
            given.copy_(dense)


def _like_state(out, last):
    """`out` itself where it lies in the state's layout, else a tensor to copy from."""
    if out.is_contiguous() if not last else _layout.is_channels_last(out):
        return out
    return _layout.empty(out.shape, last, out.dtype, out.device)


def _slots(history, last):
    """The history with each slot [B, C, *] in the state's layout, itself where it is already."""
    if not last:
        return history.contiguous()
    moved = history.movedim(2, -1)
    return history if moved.is_contiguous() else moved.contiguous().movedim(-1, 2)


def _in_place(x, model_output, rows, row, *options):
    _reverse_step(x, model_output, x, rows, row, *options)


_LIBRARY.impl("reverse_step_", _in_place, "CompositeExplicitAutograd")
_LIBRARY.impl("reverse_step_out", _reverse_step, "CompositeExplicitAutograd")
torch.library.register_fake("fastdiff::reverse_step_", lambda *arguments: None, lib=_LIBRARY)
torch.library.register_fake("fastdiff::reverse_step_out", lambda *arguments: None, lib=_LIBRARY)
