"""`reverse_step` row after row on the same tensors, which are checked once."""

from . import _check, _dispatch, _layout
from .reverse_step import in_slots, reverse_step


class ReverseSteps:
    """steps(model_output, i): reverse_step(x, model_output, rows, row[i], out=x, rng=rng[i], **options).

    The same call for less of the host's time, where no gradients are recorded. The first is checked as a whole, and so
    is every one on backends other than C++ and CUDA; a later one only in what may have changed: the backend asked for,
    torch's modes, and the output's shape, strides, dtype, device and place in memory.

    Args: tensors whose memory stays where it is.
        x: [B, C, *], the state, changed in place.
        rows: [R, 24], the table.
        row: int64 [S, 1], the rows of the table that calls 0 to S - 1 take.
        rng: int64 [S, 2], their noise, or None.
        options: those of `reverse_step` that stay the same tensors: model_input, history, sample_ids, mask, known.

    Raises what `reverse_step` does.
    """

    def __init__(
        self, x, rows, row, rng=None, *, model_input=None, history=None, sample_ids=None, mask=None, known=None
    ):
        self._x, self._rows, self._sample_ids = x, rows, sample_ids
        self._written = model_input, history
        self._read = mask, known
        self._row, self._rng = row, rng
        self._again = None  # the native rows, once an output is checked

    def __call__(self, model_output, i):
        if (
            self._again is None
            or _dispatch.requested() != self._backend
            or model_output is None
            or not _dispatch.eager(model_output)
            or _check.differentiating()
            or not self._again(model_output, i)
        ):
            self._checked(model_output, i)

    def _checked(self, model_output, i):
        (model_input, history), (mask, known) = self._written, self._read
        rng = None if self._rng is None else self._rng[i]
        reverse_step(
            self._x, model_output, self._rows, self._row[i], out=self._x, model_input=model_input, history=history,
            rng=rng, sample_ids=self._sample_ids, mask=mask, known=known,
        )  # fmt: skip
        self._again, self._backend = None, _dispatch.requested()
        backend = _dispatch.choose("reverse_step", self._backend, self._x.device.type, self._x.dtype)
        if model_output is not None and backend in ("cpu", "cuda") and self._as_backends_take_them(model_output):
            self._again = _dispatch.native().reverse_steps(
                self._x, model_output, self._rows, self._row, self._x, model_input, history, self._rng,
                self._sample_ids, mask, known,
            )  # fmt: skip

    def _as_backends_take_them(self, model_output):
        """Whether `reverse_step` hands on each tensor as it is, with none to copy or convert."""
        x, (model_input, history), (mask, known) = self._x, self._written, self._read
        given = x, model_output, self._rows, model_input, history, self._rng, self._sample_ids, mask, known
        if _check.SYNCHRONISE or not _dispatch.eager(*given):
            return False
        last = _layout.addressed_last(x)
        dense = all(value is None or _layout.dense(value) is value for value in (x, model_output, model_input))
        alike = all(value is None or _layout.in_layout(value, last) is value for value in (mask, known))
        plain = self._rows.is_contiguous() and (mask is None or mask.dtype is x.dtype)
        return dense and alike and plain and (history is None or in_slots(history, last) is history)
