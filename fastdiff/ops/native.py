"""The C++ and CUDA backends: tensors into fastdiff._C, a status out, which becomes an exception here."""

import os

import torch

try:
    from fastdiff import _C
except ImportError as error:  # no compiler at build, or a build for another Python
    _C, _IMPORT_ERROR = None, error

# What the module is told of torch, which it does not link with (csrc/tensor.h).
TORCH = (
    (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int64),
    getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
    torch.device("cpu"),
    (torch.Tensor, torch.nn.Parameter),
)

if _C:
    _C.set_torch(*TORCH)
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
    """Use "avx512bf16", "avx512", "avx2", "baseline" or "auto", the widest this processor has."""
    against = _C.set_simd_level(level)
    if against:
        raise ValueError(f"SIMD level must be one that runs here, got {level!r}: {against}")


if _C and os.environ.get("FASTDIFF_SIMD"):
    set_simd_level(os.environ["FASTDIFF_SIMD"])


def _place(tensor):
    """Device ordinal (-1: the CPU), stream address, number of threads."""
    if tensor.is_cpu:
        return -1, 0, torch.get_num_threads()
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index), 0


def _raise(status):
    code, _, value = status
    if code == _C.CUDA_ERROR:
        raise RuntimeError(f"CUDA kernel failed: {_C.error_string(value)}")
    raise NotImplementedError(f"the native kernel has no such combination of dtypes and layouts (dtype {value})")


def normal(out, rng, sample_ids, stream):
    status = _C.normal(*_place(out), out, rng, sample_ids, stream)
    if status:
        _raise(status)


def q_sample(x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, x_t, noise_out):
    status = _C.q_sample(
        *_place(x_t), x_start, t, alpha, sigma, noise, rng, sample_ids, flip, stream, x_t, noise_out
    )  # fmt: skip
    if not status:
        return
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"t must be in [0, {len(alpha)}), got {value} at position {where}")
    _raise(status)


def reverse_step(x, model_output, rows, *arguments):
    status = _C.reverse_step(*_place(x), x, model_output, rows, *arguments)
    if status:
        _raise_step(status, rows)


def reverse_steps(x, model_output, rows, row, out, model_input, history, rng, sample_ids, mask, known):
    """again(model_output, i): `reverse_step` of row[i] and rng[i]; False, and nothing done, for an output unlike this.

    row int64 [S, 1], rng int64 [S, 2] or None. The tensors' memory must stay where it is.
    """
    given = model_input, history, None, rng, sample_ids, None, mask, known, None, None, None, None
    steps, step = _C.steps(*_place(x), x, model_output, rows, row, out, *given), _C.steps_row

    def again(model_output, i):
        status = step(steps, *_place(x)[1:], i, model_output)
        if status:
            _raise_step(status, rows)
        return status is None

    again.tensors = x, rows, row, out, given
    return again


def _raise_step(status, rows):
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"row must be in [0, {len(rows)}), got {value} at position {where}")
    if code == _C.MISSING_INPUT:
        argument, columns = _MISSING[where]
        raise ValueError(f"{argument} must be a tensor where a row's {columns} is not 0 (here row {value}), got None")
    _raise(status)


def group_norm_silu(x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd, *epilogue):
    place, workspace = _place(x), None
    if place[0] >= 0:  # the CUDA kernels always leave their statistics, and hand sums from launch to launch
        if mean is None:
            mean, rstd = torch.empty((2, x.shape[0], groups), dtype=torch.float32, device=x.device)
        workspace = mean.new_empty(_C.group_norm_silu_workspace(x, groups))
    status = _C.group_norm_silu(
        *place, x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd, workspace, *epilogue
    )  # fmt: skip
    if status:
        _raise(status)


def group_norm_silu_backward(grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu, grad_x, grad_weight,
                             grad_bias, grad_add, grad_scale, grad_shift, *drop):  # fmt: skip
    place, workspace = _place(x), None
    if place[0] >= 0:
        workspace = mean.new_empty(_C.group_norm_silu_backward_workspace(x, groups))
    status = _C.group_norm_silu_backward(
        *place, grad_y, x, mean, rstd, weight, bias, groups, add, scale, shift, silu, grad_x, grad_weight, grad_bias,
        grad_add, grad_scale, grad_shift, workspace, *drop
    )  # fmt: skip
    if status:
        _raise(status)


def rms_norm_silu(x, *arguments):
    status = _C.rms_norm_silu(*_place(x), x, *arguments)
    if status:
        _raise(status)


def rms_norm_silu_backward(grad_y, x, *arguments):
    place = _place(x)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    extents = (*x.shape[:2], 2 * _C.RMS_PARTS)
    if place[0] >= 0:
        extents = _C.rms_norm_silu_backward_workspace(x)
    workspace = torch.empty(extents, dtype=dtype, device=x.device)
    status = _C.rms_norm_silu_backward(*place, grad_y, x, *arguments, workspace)
    if status:
        _raise(status)


def _loss_workspace(place, x_start):
    """Room for the sums of chunks; None where each sample is one."""
    if place[0] >= 0:
        floats = _C.loss_workspace(x_start)
        return torch.empty(floats, dtype=torch.float32, device=x_start.device) if floats else None
    B, elements = len(x_start), x_start.numel()
    if elements <= 16384 * B:
        return None
    return torch.empty((B, -(-elements // (16384 * B))), dtype=torch.float64, device=x_start.device)


def _raise_loss(status, T):
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"t must be in [0, {T}), got {value} at position {where}")
    if code == _C.MISSING_INPUT:
        raise ValueError(f"model_output must have 2C channels where table's l_1 is not 0 (here row {value})")
    _raise(status)


def diffusion_loss(model_output, x_start, t, target_x0, *arguments):
    place = _place(model_output)
    workspace = _loss_workspace(place, x_start)
    status = _C.diffusion_loss(*place, model_output, x_start, t, target_x0, *arguments, workspace)
    if status:
        _raise_loss(status, len(target_x0))


def diffusion_loss_backward(grad_loss, model_output, x_start, t, target_x0, *arguments):
    status = _C.diffusion_loss_backward(
        *_place(model_output), grad_loss, model_output, x_start, t, target_x0, *arguments
    )  # fmt: skip
    if status:
        _raise_loss(status, len(target_x0))


def vlb_terms(model_output, x_start, x_t, t, table, *arguments):
    place = _place(model_output)
    workspace = _loss_workspace(place, x_start)
    status = _C.vlb_terms(*place, model_output, x_start, x_t, t, table, *arguments, workspace)
    if status:
        _raise_loss(status, len(table))


def vlb_terms_backward(grad_terms, model_output, x_start, x_t, t, table, *arguments):
    status = _C.vlb_terms_backward(*_place(model_output), grad_terms, model_output, x_start, x_t, t, table, *arguments)
    if status:
        _raise_loss(status, len(table))


from .native_conv3x3 import conv3x3, conv3x3_backward  # noqa: E402, F401  (which is written in terms of the above)
