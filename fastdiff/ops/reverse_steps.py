"""`reverse_step` row after row on the same tensors, which are checked once."""

from . import _check, _dispatch, _layout
from .reverse_step import in_slots, reverse_step


class ReverseSteps:
    """steps(model_output, i): reverse_step(x, model_output, rows, row[i], out=x, rng=rng[i], **options).

    The same call for less of the host's time, where no gradients are recorded. The first is checked as a whole; a later
    one only in what may have changed: the backend asked for, torch's modes, and the output's shape, strides, dtype,
    device and place in memory.

    Args:
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
        self._row, self._rng = row.unbind(0), [None] * len(row) if rng is None else rng.unbind(0)
        self._known = None  # device, shape, dtype, strides of the last checked output

    def __call__(self, model_output, i):
        if self._known is None or not self._is_known(model_output):
            self._checked(model_output, i)
            return
        x, (model_input, history), (mask, known) = self._x, self._written, self._read
        self._function(
            x, model_output, self._rows, self._row[i], x, model_input, history, None, self._rng[i], self._sample_ids,
            None, mask, known, None, None, None, None,
        )  # fmt: skip

    def _is_known(self, model_output):
        if model_output is None or _dispatch.requested() != self._backend or not _dispatch.eager(model_output):
            return False
        device, shape, dtype, strides = self._known
        if _check.differentiating() or not _check.conforms(device, "model_output", model_output, shape, dtype):
            return False
        first = model_output.data_ptr()
        end = first + model_output.nbytes
        for written in self._ranges:
            if first < written[1] and written[0] < end:
                return False
        return model_output.stride() == strides

    def _checked(self, model_output, i):
        (model_input, history), (mask, known) = self._written, self._read
        reverse_step(
            self._x, model_output, self._rows, self._row[i], out=self._x, model_input=model_input, history=history,
            rng=self._rng[i], sample_ids=self._sample_ids, mask=mask, known=known,
        )  # fmt: skip
        self._known = None
        if model_output is not None and self._as_backends_take_them(model_output):
            self._known = model_output.device, model_output.shape, model_output.dtype, model_output.stride()
            self._backend = _dispatch.requested()
            self._function = _dispatch.function("reverse_step", self._backend, self._x)
            self._ranges = [
                (value.data_ptr(), value.data_ptr() + value.nbytes)
                for value in (self._x, model_input, history)
                if value is not None
            ]

    def _as_backends_take_them(self, model_output):
        """Whether `reverse_step` hands on each tensor as it is, with none to copy or convert."""
        x, (model_input, history), (mask, known) = self._x, self._written, self._read
        given = x, model_output, self._rows, model_input, history, self._rng[0], self._sample_ids, mask, known
        if _check.SYNCHRONISE or not _dispatch.eager(*given):
            return False
        last = _layout.addressed_last(x)
        dense = all(value is None or _layout.dense(value) is value for value in (x, model_output, model_input))
        alike = all(value is None or _layout.in_layout(value, last) is value for value in (mask, known))
        plain = self._rows.is_contiguous() and (mask is None or mask.dtype is x.dtype)
        return dense and alike and plain and (history is None or in_slots(history, last) is history)
