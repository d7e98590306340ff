"""The ODE solvers of scipy and torchdiffeq behind one call."""

import math
import sys

import pytest
import torch

from fastdiff.processes.integrate import SCIPY, TORCHDIFFEQ, integrate


@pytest.mark.parametrize("method", (*SCIPY, *TORCHDIFFEQ))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_of_states_with_a_known_path(method, dtype):
    """dy/dt = cos(t) y, dz/dt = sum of y: backwards as well."""
    y, z = torch.tensor([[1.0, 2.0]], dtype=dtype), torch.tensor([3.0], dtype=dtype)

    def field(t, state):
        return math.cos(t) * state[0], state[0].sum(1)

    tight = {"method": method, "rtol": 1e-6, "atol": 1e-6}
    end_y, end_z = integrate(field, (y, z), 0.0, 2.0, **tight)
    assert end_y.dtype == end_z.dtype == dtype and end_y.shape == y.shape
    torch.testing.assert_close(end_y, y * math.exp(math.sin(2)), rtol=1e-4, atol=0)
    back_y, back_z = integrate(field, (end_y, end_z), 2.0, 0.0, **tight)
    torch.testing.assert_close((back_y, back_z), (y, z), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["RK45", "dopri5", "bosh3"])
def test_no_call_is_made_past_the_end(method):
    times = []

    def field(t, state):
        times.append(t)
        return (state[0],)

    integrate(field, (torch.ones(1, 1),), 1.0, 0.1, method=method)
    assert max(times) <= 1.0 and min(times) >= 0.1 - 1e-12


def test_errors(monkeypatch):
    def field(t, state):
        return (state[0] ** 2,)  # which ends at t = 1

    with pytest.raises(RuntimeError, match=r"RK45 did not reach 2.0"):
        integrate(field, (torch.ones(1, 1),), 0.0, 2.0)
    with pytest.raises(ValueError, match=r"method must be one of RK45, .*, got 'euler'"):
        integrate(field, (torch.ones(1, 1),), 0.0, 0.5, method="euler")
    with pytest.raises(ValueError, match="rtol must be positive, got 0"):
        integrate(field, (torch.ones(1, 1),), 0.0, 0.5, rtol=0)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"method 'dopri5' needs torchdiffeq: pip install fastdiff\[ode\]"):
        integrate(field, (torch.ones(1, 1),), 0.0, 0.5, method="dopri5")
