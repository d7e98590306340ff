"""A solver's table: what each step of a run computes, as plain numbers."""

import torch

from ..ops.rows import COLUMNS, NAMES, WIDTH
from . import plan_json
from .explain import explained

# Columns not given are 0 but for these: conditional guidance, no clip, no history written, input not scaled.
_DEFAULTS = {"w": 1.0, "bound": float("inf"), "write": -1.0, "c_in": 1.0}


class Plan:
    """Rows of coefficients of one formula, run from first to last by `fastdiff.ops.reverse_step`, which states it:

        x0 = clip(p_x*x + p_m*m, bound) + ...        x' = c_x*x + c_0*x0 + c_m*m + ... + std*noise

    Args:
        time: [S], what the network is fed at each row: ints become int64, else float64 (fed as float32).
        call: bool or [S] bools: whether the network is called before the row.
        start: x_T = start * noise.
        adjust: for rows that depend on the state, adjust(rows [B, 24], row, x, model_output, noise): writes into the
            samples' copies of the row, on their device and without a host read, before the kernel runs; else None.
        adjusted: bool or [S] bools: the rows that it is called for; their noise is drawn first and handed to it.
        columns: coefficients by their names in `fastdiff.ops.rows`, a number or [S] each; 0 where not given, but w = 1,
            bound = inf, write = -1, c_in = 1.

    Attributes: rows [S, 24] float64, time [S], call (S bools); learned: a row reads the network's variance channels;
    multistep: a row reads or writes history; draws: a row adds noise; scales_input: c_in is not 1 everywhere;
    input_scale: c_in of row 0; start, adjust, adjusted (S bools).
    `plan["std"]` is a column [S], `len(plan)` is S. Raises TypeError or ValueError that names the column: finite in
    float32, bound positive, write one of -1, 0, 1, 2.
    """

    def __init__(self, time, *, call=True, start=1.0, adjust=None, adjusted=False, **columns):
        dtype = torch.float64 if torch.as_tensor(time).is_floating_point() else torch.int64
        self.time = torch.as_tensor(time, dtype=dtype, device="cpu").detach().clone()
        if self.time.dim() != 1 or len(self.time) == 0 or not torch.isfinite(self.time).all():
            raise ValueError(f"time must be [S] finite numbers with S at least 1, got {self.time.tolist()}")
        S = len(self.time)
        self.call = _flags("call", call, S)
        self.adjust, self.adjusted = adjust, _flags("adjusted", adjusted, S)
        if any(self.adjusted) and not callable(adjust):
            raise TypeError(f"adjust must be callable where rows are adjusted, got {type(adjust).__name__}")
        self.start = float(start)
        if not 0 < self.start < float("inf"):
            raise ValueError(f"start must be finite and positive, got {start}")
        self.rows = torch.zeros(S, WIDTH, dtype=torch.float64, device="cpu")
        for name, value in {**_DEFAULTS, **columns}.items():
            if name not in COLUMNS:
                raise TypeError(f"columns must be among {', '.join(NAMES)}, got {name!r}")
            self.rows[:, COLUMNS[name]] = _column(name, value, S)
        self.learned = self._uses("l_1")
        self.multistep = self._uses("write", "c_1", "c_2", "c_3")
        self.draws = self._uses("std")
        self.input_scale = self["c_in"][0].item()
        self.scales_input = self._uses("c_in")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        return self.rows[:, COLUMNS[name]]

    def __repr__(self):
        """The first and the last rows, without the columns that are nowhere used."""
        used = [name for name in NAMES if self._uses(name)]
        shown = range(len(self)) if len(self) <= 6 else (0, 1, 2, None, len(self) - 2, len(self) - 1)
        lines = [["row", "time", "call", *used]]
        for row in shown:
            if row is None:
                lines.append(["..."] + [""] * (len(used) + 2))
                continue
            numbers = (f"{value:.6g}" for value in (self.time[row].item(), *(self[name][row].item() for name in used)))
            time, *values = numbers
            lines.append([str(row), time, "yes" if self.call[row] else "no", *values])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([f"Plan of {len(self)} rows", *table])

    def _uses(self, *names):
        """Whether any of these columns differs from its default."""
        return any((self[name] != _DEFAULTS.get(name, 0.0)).any().item() for name in names)

    def replace(self, **columns):
        """The same plan with these columns instead of its own, a number or [S] each."""
        own = {name: self[name] for name in NAMES}
        options = {"call": self.call, "start": self.start, "adjust": self.adjust, "adjusted": self.adjusted}
        return Plan(self.time, **options, **{**own, **columns})

    def explain(self):
        """Prints each row in words and formulas, and returns the text."""
        text = explained(self)
        print(text)
        return text

    def to_json(self):
        """The plan as a JSON text, whose numbers are exact; ValueError where a row is adjusted by a function."""
        return plan_json.encoded(self)

    @classmethod
    def from_json(cls, text):
        """The plan of `to_json`; ValueError that names the field which is missing or wrong."""
        return cls(**plan_json.decoded(text))

    def table(self, device=None, dtype=torch.float32):
        """rows on `device`, float32 or, for a float64 state, float64."""
        return self.rows.to(device, dtype)

    def estimates(self):
        """The plan whose x' is x0 of this one's: for looking at a run's estimates, computed by the same kernel."""
        kept = {name: self[name] for name in ("w", "p_x", "p_m", "bound", "g_0")}
        return Plan(self.time, call=self.call, c_0=1.0, **kept)


def _flags(name, value, S):
    flags = (value,) * S if isinstance(value, bool) else tuple(map(bool, value))
    if len(flags) != S:
        raise ValueError(f"{name} must be a bool or {S} of them, got {len(flags)}")
    return flags


def _column(name, value, S):
    try:
        value = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or {S} of them, got {type(value).__name__}") from error
    if value.shape not in ((), (S,)):
        raise ValueError(f"{name} must be a number or have shape [{S}], got {list(value.shape)}")
    value = value.expand(S)
    if name == "bound":
        allowed, rule = value > 0, "positive (inf for no clip)"
    elif name == "write":
        allowed, rule = (value == -1) | (value == 0) | (value == 1) | (value == 2), "-1, 0, 1 or 2"
    else:
        allowed, rule = value.float().isfinite(), "finite in float32"
    if not allowed.all():
        row = int((~allowed).nonzero()[0])
        raise ValueError(f"{name} must be {rule}, got {value[row].item()} at row {row}")
    return value
