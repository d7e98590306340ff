"""Makes Triton's interpreter round as the GPU does.

Unpatched, it converts float32 to bfloat16 by cutting off the low half (where a rounding mode is asked for it rounds
ties away from zero and loses the carry out of the significand), and `tl.fma` rounds twice.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def round_to_bfloat16(values):
    """float32 array to the bit patterns (uint16) of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def fused_multiply_add(x, y, z):
    """float32 arrays: x * y is exact in float64, so only the sum's rounding to 53 bits precedes the one to 24."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (x.astype(np.float64) * y + z).astype(np.float32)


def install():
    """Patches the interpreter for this process; a second call changes nothing."""
    if interpreter._convert_float is not _convert_float:
        interpreter._convert_float = _convert_float
        interpreter.InterpreterBuilder.create_fma = _create_fma


_interpreter_convert_float = interpreter._convert_float
_interpreter_create_fma = interpreter.InterpreterBuilder.create_fma


def _convert_float(values, from_dtype, to_dtype, rounding_mode):
    if from_dtype == tl.float32 and to_dtype == tl.bfloat16:
        return round_to_bfloat16(values)
    return _interpreter_convert_float(values, from_dtype, to_dtype, rounding_mode)


def _create_fma(builder, x, y, z):
    if z.dtype.scalar != tl.float32:
        return _interpreter_create_fma(builder, x, y, z)
    return interpreter.TensorHandle(fused_multiply_add(x.data, y.data, z.data), tl.float32)
