"""A plan's rows as papers write them: linear forms in x, x0, the network's output, the history and the noise."""

import math

from .plan import Plan

_RESULT = ("c_x", "c_0", "c_m", "c_1", "c_2", "c_3", "std")
_KEPT = ("q_x", "q_0", "q_m")


class Form:
    """A linear combination of X, X0, M, H[0], H[1], H[2] and NOISE: + and -, * and / by numbers."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients):
        self.coefficients = tuple(coefficients)

    def __repr__(self):
        named = zip(("x", "x0", "m", "h0", "h1", "h2", "noise"), self.coefficients, strict=True)
        return " + ".join(f"{value:.6g}*{name}" for name, value in named if value) or "0"

    def __add__(self, other):
        return Form(a + b for a, b in zip(self.coefficients, other.coefficients, strict=True))

    def __sub__(self, other):
        return self + -1.0 * other

    def __neg__(self):
        return -1.0 * self

    def __mul__(self, number):
        return Form(a and a * number for a in self.coefficients)  # 0 * inf is 0: the term is not there

    __rmul__ = __mul__

    def __truediv__(self, number):
        return self * (1.0 / number if number else math.inf)


def _symbols():
    return [Form(float(i == j) for j in range(7)) for i in range(7)]


X, X0, M, *H, NOISE = _symbols()
ZERO = X - X


def eps(point):
    """The noise in x that x0 leaves at this point, (x - alpha * x0) / sigma."""
    return (X - point.alpha * X0) / point.sigma


def raw_eps(point):
    """The noise that the network's output alone stands for, whatever the clip: x0 = p_x * x + p_m * m in `eps`."""
    return (X - point.alpha * (point.p_x * X + point.p_m * M)) / point.sigma


class Rows:
    """The rows of a plan, gathered one by one; `clip` bounds every x0, None does not."""

    def __init__(self, clip):
        self._bound = math.inf if clip is None else clip
        self._times, self._calls, self._rows = [], [], []

    def add(self, point, result, *, keep=None, slot=-1, call=True):
        """x' = result, with x0 the network's estimate at `point`; h[slot] = keep, a form of X, X0 and M.

        call: False where no network is asked; `result` then holds neither X0 nor M.
        """
        row = dict(zip(_RESULT, result.coefficients, strict=True))
        if keep is not None:
            row |= dict(zip(_KEPT, keep.coefficients, strict=False), write=slot)
        if call:
            row |= {"p_x": point.p_x, "p_m": point.p_m, "c_in": point.c_in, "bound": self._bound}
        self._times.append(0 if point.time is None else point.time)
        self._calls.append(call)
        self._rows.append(row)

    def plan(self, start=1.0):
        """The Plan of these rows; start: as `Plan` has it."""
        defaults = {"bound": math.inf, "write": -1.0, "c_in": 1.0}
        names = {name: defaults.get(name, 0.0) for row in self._rows for name in row}
        columns = {name: [row.get(name, default) for row in self._rows] for name, default in names.items()}
        return Plan(self._times, call=self._calls, start=start, **columns)
