"""The error budget: how far from the float64 result a backend may be, given how far ordinary float32 PyTorch is."""

import torch

EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-52}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float64: 2.0**-1074}


def ulp(value, dtype):
    """Spacing of the dtype's numbers at each |value|, float64."""
    _, exponent = torch.frexp(value.abs().double())
    return (torch.exp2(exponent.double() - 1) * EPSILON[dtype]).clamp_min(SMALLEST[dtype])


def error_of(result, exact):
    """Largest distance to the float64 result."""
    return float((result.double().cpu() - exact).abs().max()) if exact.numel() else 0.0


def assert_in_budget(result, exact, eager_error):
    """float32: max error at most max(2 x eager's, 2 ulp of the output's maximum); 16 bits: 0.51 ulp of the output plus
    twice float32 eager's error; float64: 16 ulp of the maximum."""
    assert result.isfinite().all()
    error = (result.double().cpu() - exact).abs()
    if not error.numel():
        return
    largest = ulp(exact.abs().max(), result.dtype)
    if result.dtype is torch.float64:
        allowed = 16 * largest
    elif result.dtype is torch.float32:
        allowed = max(2 * eager_error, 2 * float(largest))
    else:
        allowed = 0.51 * ulp(exact, result.dtype) + 2 * eager_error
    excess = (error - allowed).max()
    assert excess <= 0, f"error {error.max():.3g} exceeds the budget by {excess:.3g} (eager's error: {eager_error:.3g})"


def same_bits(a, b):
    """Equality of every bit pattern, NaN and the sign of zero included."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
