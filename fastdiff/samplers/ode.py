"""The probability-flow ODE of a continuous process, dx/dt = drift x - diffusion^2 / 2 * score."""

import itertools

from ..processes.continuous import precise
from ..processes.integrate import check_method, integrate
from ..processes.interpolated import continuous
from .stages import stage_plan


def probability_flow(process, timesteps=None, *, clip=None, method="rk4", denoise=True):
    """From each time to the next one Runge-Kutta step of dx/dt = of_x(t) x + of_x0(t) x0 (see the process' `flow`).

    Args:
        process: any with continuous time, or one that `fastdiff.processes.interpolated.continuous` gives it.
        timesteps: the number of times from t_max to t_min, or the times (see the process' `times`).
        clip: bound of x0's absolute value, or None.
        method: "euler" (order 1, one call per step), "midpoint" or "heun" (2, two), "rk4" (4, four).
        denoise: end with x = x0 at the last time; else the run stops there, as score_sde's `ode_sampler` does.

    Returns a Plan of one row per network call.
    Source: Song et al. 2021, equation 13.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    process = continuous(process)
    times = process.times(timesteps).tolist()
    if len(times) == 1 and not denoise:
        raise ValueError("timesteps must be at least 2 without denoise, got 1")
    rows = []
    for t, t_next in itertools.pairwise(times):
        rows += METHODS[method](lambda t: [value.item() for value in process.flow(t)], t, t_next)
    return stage_plan(process, [*rows, (times[-1], {"c_0": 1.0})] if denoise else rows, clip=clip)


def _euler(flow, t, t_next):
    (a, b), h = flow(t), t_next - t
    return [(t, {"c_x": 1 + h * a, "c_0": h * b})]


def _midpoint(flow, t, t_next):
    """x at the middle; h0 keeps x."""
    h, middle = t_next - t, (t + t_next) / 2
    (a, b), (a_m, b_m) = flow(t), flow(middle)
    return [
        (t, {"c_x": 1 + h / 2 * a, "c_0": h / 2 * b, "write": 0, "q_x": 1}),
        (middle, {"c_1": 1, "c_x": h * a_m, "c_0": h * b_m}),
    ]


def _heun(flow, t, t_next):
    """Euler's x; h0 keeps x + h/2 k1."""
    h, (a, b), (a_n, b_n) = t_next - t, flow(t), flow(t_next)
    return [
        (t, {"c_x": 1 + h * a, "c_0": h * b, "write": 0, "q_x": 1 + h / 2 * a, "q_0": h / 2 * b}),
        (t_next, {"c_1": 1, "c_x": h / 2 * a_n, "c_0": h / 2 * b_n}),
    ]


def _rk4(flow, t, t_next):
    """States x, x2 = x + h/2 k1, x3 = x + h/2 k2, x4 = x + h k3; h0 keeps x and h1 x2 / 3 + h/3 k2, so that

    x + h/6 (k1 + 2 k2 + 2 k3 + k4) = h0 / 3 + h1 + x4 / 3 + h/6 k4.
    """
    h, middle = t_next - t, (t + t_next) / 2
    (a, b), (a_m, b_m), (a_n, b_n) = flow(t), flow(middle), flow(t_next)
    push = {"write": 1, "q_x": (1 + h * a_m) / 3, "q_0": h / 3 * b_m}
    return [
        (t, {"c_x": 1 + h / 2 * a, "c_0": h / 2 * b, "write": 0, "q_x": 1}),
        (middle, {"c_1": 1, "c_x": h / 2 * a_m, "c_0": h / 2 * b_m, **push}),
        (middle, {"c_1": 1, "c_x": h * a_m, "c_0": h * b_m}),
        (t_next, {"c_1": 1 / 3, "c_2": 1, "c_x": 1 / 3 + h / 6 * a_n, "c_0": h / 6 * b_n}),
    ]


METHODS = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "rk4": _rk4}


class AdaptiveFlow:
    """The probability-flow ODE from t_max to t_min with an error-controlled step, run in place of a Plan.

    Args:
        process: as for `probability_flow`.
        timesteps: None, for the solver chooses its own.
        clip: bound of x0's absolute value, or None.
        method, rtol, atol: see `fastdiff.processes.integrate`. The error is that of the whole batch, so that a sample
            depends on its batch to within the tolerance; score_sde's "RK45" at 1e-5 by default.
        denoise: end with x = x0, one more call.

    Attributes: start, the deviation of x_T. See `fastdiff.samplers.adaptive` for what `run` is given.
    Source: Song et al. 2021, section 4.3 and appendix D.
    """

    def __init__(self, process, timesteps=None, *, clip=None, method="RK45", rtol=1e-5, atol=1e-5, denoise=False):
        if timesteps is not None:
            raise ValueError(f"timesteps must be None where the solver chooses its own, got {timesteps!r}")
        check_method(method, rtol, atol)
        self.process, self.clip, self.denoise = continuous(process), clip, denoise
        self.tolerance = {"method": method, "rtol": rtol, "atol": atol}
        self.start = self.process.nodes(1).start

    def run(self, denoise, x, draw=None, progress=None):
        """x at t_min (its estimate x0 with `denoise`) from x at t_max; draw is not used."""
        process = self.process

        def estimate(t, x):
            x0 = denoise(x, precise(t, x.device).expand(len(x)))
            return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

        def velocity(t, state):
            of_x, of_x0 = (value.item() for value in process.flow(t))
            if progress is not None:
                progress((process.t_max - t) / (process.t_max - process.t_min))
            return (of_x * state[0] + of_x0 * estimate(t, state[0]),)

        (x,) = integrate(velocity, (x,), process.t_max, process.t_min, **self.tolerance)
        return estimate(process.t_min, x) if self.denoise else x
