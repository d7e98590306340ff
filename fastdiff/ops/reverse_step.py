"""Contract of `reverse_step`: one row of a sampler's plan."""

import torch

from . import _check, _dispatch, _layout
from . import rows as row_table

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

        m     = gain * (m_uncond + w * (m_cond - m_uncond))      guided; else gain * m. v: variance channels
        x0    = clip(p_x*x + p_m*m, bound) * shrink + g_0*extra
        s     = exp((l_0 + l_1*v) / 2)                           1 where l_0 = l_1 = 0
        x'    = c_x*x + c_0*x0 + c_m*m + c_1*h0 + c_2*h1 + c_3*h2 + (g_x + g_v*s*s)*extra + std*s*noise
        h[write] = q_x*x + q_0*x0 + q_m*m                        write = -1: none; h0..h2 above are the old history
        x'    = mask*x' + (1 - mask)*(k_0*known + k_n*known_noise)                  only where mask is given
        out   = x';   model_input = c_in(row r + 1, 1 after the last) * x'

    A term whose coefficient is 0 is not read: its tensor may be None or hold NaN. NaN passes the clip.

    Args:
        x: [B, C, *], any floating dtype; the arithmetic is float32 (float64 for float64), rounded once.
        model_output: [B or 2B, C or 2C, *], floating, any layout. 2B: halves [uncond, cond] of a guided call, the
            variance being the latter's. 2C: halves [mean, raw variance].
        rows: [R, 24] float32 (float64 where x is), columns as in `fastdiff.ops.rows`.
        row: int64 [] or [1], or [B]; on x's device and not advanced here.
        out: like x; None: a new tensor; x itself: in place.
        model_input: optional second output [B or 2B, C, *] in the network's dtype and layout; 2B: two equal halves.
        history: [3, B, C, *] of x's dtype, read and written.
        noise, known_noise: like x, or None: drawn from rng int64 [2] and sample_ids int64 [B], streams STEP and KNOWN.
        extra, known: like x.
        mask: [1 or B, 1 or C, *], bool or x's dtype; 1 generates, 0 keeps `known`.
        gain, bound, shrink: float32 [B]; None: 1, the row's bound, 1.

    Returns out. Raises ValueError, TypeError or, on the CPU, IndexError for a row outside [0, R) and ValueError for an
    input that the row needs and that is None, before anything is written; on a GPU such a sample is NaN. Not
    differentiable.
    Source: the posterior mean of Ho et al. 2020 (equation 7) is one such row, as are DDIM, DPM-Solver and their kin.
    """
    plain = noise is extra is known is known_noise is mask is history is model_input is gain is bound is shrink is None
    shape, dtype, device = facts = _check.image("x", x)
    _check_rows(rows, row, rng, sample_ids, *facts)
    if model_output is not None:
        _check_network("model_output", model_output, *facts, (1, 2))
    if out is not None and out is not x:
        _check.tensors(device, "out", out, shape, dtype)
    if not plain:
        _check_extras(*facts, noise, extra, known, known_noise, mask, history, gain, bound, shrink)
    if model_input is not None:
        _check_network("model_input", model_input, *facts, (1,))
    if _check.differentiating():
        _check.no_gradient(
            "reverse_step", x=x, model_output=model_output, noise=noise, extra=extra, mask=mask, known=known,
            known_noise=known_noise, rows=rows, out=out, history=history, model_input=model_input, gain=gain,
            bound=bound, shrink=shrink,
        )  # fmt: skip
    options = model_input, history, noise, rng, sample_ids, extra, mask, known, known_noise, gain, bound, shrink
    if out is None:
        out = torch.empty_like(x)
    main = x, model_output, rows, row, out, rng, sample_ids
    if _dispatch.eager(*main) and (plain or _dispatch.eager(*options)):
        _reverse_step(x, model_output, out, rows, row, *options, _dispatch.requested())
    elif out is x:
        torch.ops.fastdiff.reverse_step_(x, model_output, rows, row, *options, _dispatch.requested())
    else:
        torch.ops.fastdiff.reverse_step_out(x, model_output, out, rows, row, *options, _dispatch.requested())
    return out


def _check_extras(shape, dtype, device, noise, extra, known, known_noise, mask, history, gain, bound, shrink):
    for name, value in (("noise", noise), ("extra", extra), ("known", known), ("known_noise", known_noise)):
        if value is not None:
            _check.tensors(device, name, value, shape, dtype)
    for name, value in (("gain", gain), ("bound", bound), ("shrink", shrink)):
        if value is not None:
            _check.tensors(device, name, value, shape[:1], torch.float32)
    if history is not None:
        _check.tensors(device, "history", history, (3, *shape), dtype)
    if mask is None:
        if known is not None or known_noise is not None:
            raise ValueError("mask must be a tensor where known or known_noise is given, got None")
        return
    _check.is_tensor("mask", mask)
    B, C = shape[:2]
    given = mask.shape
    if len(given) != len(shape) or given[2:] != shape[2:] or given[0] not in (1, B) or given[1] not in (1, C):
        raise ValueError(f"mask must have shape [1 or B, 1 or C, *] for x of shape {list(shape)}, got {list(given)}")
    _check.tensors(device, "mask", mask, mask.shape, torch.bool if mask.dtype is torch.bool else dtype)
    if known is None:
        raise ValueError("known must be a tensor where mask is given, got None")


def _check_network(name, value, wanted, dtype, device, halves):
    """[B or 2B, C or 2C (where halves allow it), *], floating."""
    _check.is_tensor(name, value)
    shape, kind = value.shape, value.dtype
    if shape != wanted:
        B, C, *space = wanted
        channels = [half * C for half in halves]
        fits = len(shape) == len(wanted) and list(shape[2:]) == space
        if not fits or shape[0] not in (B, 2 * B) or shape[1] not in channels:
            rule = "[B or 2B, C or 2C, *]" if len(halves) == 2 else "[B or 2B, C, *]"
            raise ValueError(f"{name} must have shape {rule} for x of shape {list(wanted)}, got {list(shape)}")
    if kind not in _check.FLOATS:
        raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {kind}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")


def _check_rows(rows, row, rng, sample_ids, shape, dtype, device):
    _check.is_tensor("rows", rows)
    _check.is_tensor("row", row)
    table, place, B = rows.shape, row.shape, shape[0]
    if len(table) != 2 or table[1] != row_table.WIDTH or table[0] == 0:
        raise ValueError(f"rows must have shape [R, {row_table.WIDTH}], got {list(table)}")
    if place not in ((), (1,), (B,)):
        raise ValueError(f"row must have shape [], [1] or [{B}], got {list(place)}")
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    each = "rows", rows, table, arithmetic, "row", row, place, torch.int64
    if rng is sample_ids is None:
        _check.tensors(device, *each)
    else:
        _check.counters(rng, sample_ids, B, device, *each)
    if _check.SYNCHRONISE:
        _check.within("row", row, table[0])


def _reverse_step(x, model_output, out, rows, row, model_input, history, noise, rng, sample_ids, extra, mask, known,
                  known_noise, gain, bound, shrink, backend):  # fmt: skip
    given = out, history, model_input
    state = x
    last = not x.is_contiguous()
    if last:
        state = _layout.dense(x)
        last = not state.is_contiguous()
    out = state if out is x else _like_state(out, last)
    if model_output is not None and not model_output.is_contiguous():
        model_output = _layout.dense(model_output)
    extras = not (history is noise is extra is mask is known is known_noise is model_input is None)
    if extras:
        model_input = _layout.dense(model_input)
        history = history if history is None else in_slots(history, last)
        mask = mask if mask is None else _layout.in_layout(mask.to(x.dtype), last)
        noise, extra, known, known_noise = (_layout.in_layout(v, last) for v in (noise, extra, known, known_noise))
    if not (gain is bound is shrink is None):
        gain, bound, shrink = (v if v is None else v.contiguous() for v in (gain, bound, shrink))
    if rng is not None:
        rng, sample_ids = rng.contiguous(), sample_ids.contiguous()
    if model_output is not None:
        _check.disjoint("out", out, _READ[1:2], (model_output,))
    if extras or out is not state:
        _check_apart(out, model_input, history, (state, model_output, noise, extra, mask, known, known_noise))
    _dispatch.function("reverse_step", backend, state)(
        state, model_output, rows.contiguous(), row.contiguous(), out, model_input, history, noise, rng, sample_ids,
        extra, mask, known, known_noise, gain, bound, shrink,
    )  # fmt: skip
    if out is not given[0]:
        given[0].copy_(out)
    if extras:
        for before, dense in ((given[1], history), (given[2], model_input)):
            if before is not dense:
                before.copy_(dense)


_READ = ("x", "model_output", "noise", "extra", "mask", "known", "known_noise")


def _check_apart(out, model_input, history, read):
    _check.disjoint("out", out, _READ, read)
    if model_input is not None:
        _check.disjoint("model_input", model_input, _READ[1:], read[1:])
        _check.disjoint("model_input", model_input, ("out", "x"), (out, read[0]), identical=False)
    if history is not None:
        _check.disjoint("history", history, ("out", "model_input", *_READ), (out, model_input, *read), identical=False)


def _like_state(out, last):
    """`out` itself where it lies in the state's layout, else a tensor to copy from."""
    if out.is_contiguous() if not last else _layout.is_channels_last(out):
        return out
    return _layout.empty(out.shape, last, out.dtype, out.device)


def in_slots(history, last):
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
