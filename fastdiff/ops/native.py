"""The C++ and CUDA backends: addresses and extents into fastdiff._C, a status out.

The binding takes positional values in the order of the params structs of csrc/params.h.
"""

import os

import torch

try:
    from fastdiff import _C
except ImportError as error:  # no compiler at build, or a build for another Python
    _C, _IMPORT_ERROR = None, error

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4, torch.bool: 4}
_MISSING = (
    ("noise or rng", "std"),
    ("extra", "g_0, g_x or g_v"),
    ("history", "c_1, c_2, c_3 or write"),
    ("model_output", "p_m, c_m or q_m"),
    ("known_noise or rng", "k_n"),
    ("model_output of 2C channels", "l_1"),
)


def unavailable():
    """Why the C++ kernels cannot run; None where they can."""
    return None if _C else f"fastdiff._C is not there: {_IMPORT_ERROR}"


def cuda_unavailable():
    """Why the CUDA kernels cannot run on every GPU of this machine; None where they can."""
    if not _C:
        return unavailable()
    if not _C.cuda_architectures:
        return "this build has no CUDA kernels"
    oldest = min(_C.cuda_architectures)
    for device in range(torch.cuda.device_count()):
        found = _C.device_arch(device)
        if found < oldest:
            return f"built for compute capability {oldest / 10} or newer, device {device} has {found / 10}"
    return None


def simd_level():
    """The SIMD level in use, None without the C++ kernels."""
    return _C.simd_level() if _C else None


def set_simd_level(level):
    """Use "avx512", "avx2", "baseline" or "auto", the widest this processor has."""
    against = _C.set_simd_level(level)
    if against:
        raise ValueError(f"SIMD level must be one that runs here, got {level!r}: {against}")


if _C and os.environ.get("FASTDIFF_SIMD"):
    set_simd_level(os.environ["FASTDIFF_SIMD"])


def _place(tensor):
    """Device ordinal (-1: the CPU) and stream address."""
    if tensor.is_cpu:
        return -1, 0
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _layout(tensor):
    return 0 if tensor is None or tensor.is_contiguous() else 1


def _dtype(tensor):
    return 0 if tensor is None else _DTYPES[tensor.dtype]


def _positions(tensor):
    """S, the extent of everything after [B, C]."""
    size = 1
    for extent in tensor.shape[2:]:
        size *= extent
    return size


def _row_stride(tensor):
    return 0 if tensor is None else tensor.stride(0)


def _raise(status):
    code, where, value = status
    if code == _C.CUDA_ERROR:
        raise RuntimeError(f"CUDA kernel failed: {_C.error_string(value)}")
    raise NotImplementedError(f"the native kernel has no such combination of dtypes and layouts (got dtype {value})")


def normal(out, rng, sample_ids, stream):
    B, C = out.shape[:2]
    status = _C.normal(
        *_place(out), out.data_ptr(), rng.data_ptr(), sample_ids.data_ptr(), B, C, _positions(out), _DTYPES[out.dtype],
        _layout(out), stream, torch.get_num_threads(),
    )  # fmt: skip
    if status:
        _raise(status)


def q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, x_t, noise_out):
    B, C = x_t.shape[:2]
    W = x_t.shape[-1] if x_t.dim() > 2 else 1
    T = alpha.shape[0]
    status = _C.q_sample(
        *_place(x_t), x_start.data_ptr(), t.data_ptr(), alpha.data_ptr(), sigma.data_ptr(), _address(noise), _address(rng),
        _address(sample_ids), _address(flip), x_t.data_ptr(), _address(noise_out), B, C, _positions(x_t) // max(W, 1), W, T,
        _DTYPES[x_start.dtype], _layout(x_start), _dtype(noise), _layout(noise), _DTYPES[x_t.dtype], _layout(x_t), stream,
        torch.get_num_threads(),
    )  # fmt: skip
    if not status:
        return
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"t must be in [0, {T}), got {value} at position {where}")
    _raise(status)


def reverse_step(x, model_output, rows, row, out, model_input, history, noise, rng, sample_ids, extra, mask, known,
                 known_noise, gain, bound, shrink):  # fmt: skip
    B, C = x.shape[:2]
    R = rows.shape[0]
    status = _C.reverse_step(
        *_place(x), x.data_ptr(), out.data_ptr(), _address(noise), _address(extra), _address(known), _address(known_noise),
        _address(mask), _address(history), _address(model_output), _address(model_input), _address(gain), _address(bound),
        _address(shrink), rows.data_ptr(), row.data_ptr(), _address(rng), _address(sample_ids), B, C, _positions(x), R,
        _DTYPES[x.dtype], _layout(x), _dtype(model_output), _layout(model_output), _dtype(model_input),
        _layout(model_input), int(row.shape[0] > 1), int(model_output is not None and model_output.shape[0] != B),
        int(model_output is not None and model_output.shape[1] != C),
        0 if model_input is None or B == 0 else model_input.shape[0] // B, 0 if mask is None else mask.shape[0],
        0 if mask is None else mask.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    if not status:
        return
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"row must be in [0, {R}), got {value} at position {where}")
    if code == _C.MISSING_INPUT:
        argument, columns = _MISSING[where]
        raise ValueError(f"{argument} must be a tensor where a row's {columns} is not 0 (here row {value}), got None")
    _raise(status)


def _normalization(x, weight, bias, groups, add, scale, shift):
    """The extents and strides of GroupNormSiluParams; its dtypes."""
    B, C = x.shape[:2]
    extents = B, C, _positions(x), groups, _row_stride(add), _row_stride(scale), _row_stride(shift)
    dtypes = _dtype(weight if bias is None else bias), _dtype(add), _dtype(scale), _dtype(shift)
    return extents, (_DTYPES[x.dtype], _layout(x), *dtypes)


def group_norm_silu(x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd):
    extents, dtypes = _normalization(x, weight, bias, groups, add, scale, shift)
    status = _C.group_norm_silu(
        *_place(x), x.data_ptr(), _address(weight), _address(bias), _address(add), _address(scale), _address(shift),
        y.data_ptr(), mean.data_ptr(), rstd.data_ptr(), *extents, eps, *dtypes, int(silu), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        _raise(status)


def group_norm_silu_backward(grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu, grad_x, grad_weight,
                             grad_bias, grad_add, grad_scale, grad_shift):  # fmt: skip
    extents, dtypes = _normalization(x, weight, bias, groups, add, scale, shift)
    workspace = mean.new_empty((x.shape[0], x.shape[1], 4))
    status = _C.group_norm_silu_backward(
        *_place(x), grad_y.data_ptr(), x.data_ptr(), mean.data_ptr(), rstd.data_ptr(), _address(weight), _address(bias),
        _address(add), _address(scale), _address(shift), _address(grad_x), _address(grad_weight), _address(grad_bias),
        _address(grad_add), _address(grad_scale), _address(grad_shift), workspace.data_ptr(), *extents, *dtypes, int(silu),
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        _raise(status)
