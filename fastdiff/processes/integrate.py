"""Ordinary differential equations dy/dt = f(t, y) with an error-controlled step, by scipy or torchdiffeq."""

import math

import torch

SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
TORCHDIFFEQ = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def check_method(method, rtol, atol):
    """Raises ValueError that names the argument, ImportError for torchdiffeq where it is not installed."""
    if method not in (*SCIPY, *TORCHDIFFEQ):
        raise ValueError(f"method must be one of {', '.join((*SCIPY, *TORCHDIFFEQ))}, got {method!r}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    if method in TORCHDIFFEQ:
        try:
            import torchdiffeq  # noqa: F401
        except ImportError as error:
            raise ImportError(f"method {method!r} needs torchdiffeq: pip install fastdiff[ode]") from error


def integrate(f, y, start, end, *, method="RK45", rtol=1e-5, atol=1e-5):
    """y(end) of dy/dt = f(t, y), y(start) = y.

    The error is controlled over all of y at once, whose samples therefore share their steps: the norm of the
    root-mean-square error of all elements, each scaled by atol + rtol * |y|, is held below 1.

    Args:
        f: f(t, y) -> dy/dt; t is a float, y and its result tuples of tensors.
        y: tuple of tensors, on one device.
        start, end: floats, in either order.
        method: of scipy ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"), in float64 on the host, which a GPU's
            state visits at every call; or of torchdiffeq ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"),
            in y's dtype on its device, from the extra `ode`.

    Returns a tuple like y. Raises RuntimeError where the solver gives up.
    """
    check_method(method, rtol, atol)
    return (_scipy if method in SCIPY else _torchdiffeq)(f, y, start, end, method, rtol, atol)


def _torchdiffeq(f, y, start, end, method, rtol, atol):
    from torchdiffeq import odeint

    times = torch.tensor([start, end], dtype=torch.float64, device=y[0].device)
    # Else the last step goes past the end, where a process may have no network, and is interpolated back.
    options = {"dtype": torch.float64, "step_t": times[1:]}
    path = odeint(lambda t, y: f(float(t), y), y, times, rtol=rtol, atol=atol, method=method, options=options)
    return tuple(value[-1] for value in path)


def _scipy(f, y, start, end, method, rtol, atol):
    from scipy.integrate import solve_ivp

    sizes = [value.numel() for value in y]

    def pack(values):
        return torch.cat([value.detach().double().cpu().flatten() for value in values]).numpy()

    def unpack(flat):
        parts = torch.from_numpy(flat.copy()).split(sizes)
        return tuple(part.to(value).reshape(value.shape) for part, value in zip(parts, y, strict=True))

    solution = solve_ivp(
        lambda t, flat: pack(f(float(t), unpack(flat))), (start, end), pack(y), method=method, rtol=rtol, atol=atol
    )
    if not solution.success:
        raise RuntimeError(f"{method} did not reach {end}: {solution.message}")
    return unpack(solution.y[:, -1])
