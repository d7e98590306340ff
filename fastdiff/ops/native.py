"""The C++ and CUDA backends: tensors into fastdiff._C, a status out, which becomes an exception here."""

import os

import torch
import torch.nn.functional as F

from . import _layout, _winograd

try:
    from fastdiff import _C
except ImportError as error:  # no compiler at build, or a build for another Python
    _C, _IMPORT_ERROR = None, error

if _C:
    _C.set_dtypes((torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool))  # enum Dtype
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
    if not status:
        return
    code, where, value = status
    if code == _C.INDEX_OUT_OF_RANGE:
        raise IndexError(f"row must be in [0, {len(rows)}), got {value} at position {where}")
    if code == _C.MISSING_INPUT:
        argument, columns = _MISSING[where]
        raise ValueError(f"{argument} must be a tensor where a row's {columns} is not 0 (here row {value}), got None")
    _raise(status)


def group_norm_silu(x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd):
    place, workspace = _place(x), None
    if place[0] >= 0:  # the CUDA kernels always leave their statistics, and hand sums from launch to launch
        if mean is None:
            mean, rstd = torch.empty((2, x.shape[0], groups), device=x.device)
        workspace = torch.empty(_C.group_norm_silu_workspace(x, groups), device=x.device)
    status = _C.group_norm_silu(
        *place, x, weight, bias, groups, eps, add, scale, shift, silu, y, mean, rstd, workspace
    )  # fmt: skip
    if status:
        _raise(status)


def group_norm_silu_backward(grad_y, x, mean, rstd, weight, bias, groups, *arguments):
    place = _place(x)
    cuda = place[0] >= 0
    workspace = mean.new_empty(_C.group_norm_silu_backward_workspace(x, groups) if cuda else (*x.shape[:2], 5))
    status = _C.group_norm_silu_backward(
        *place, grad_y, x, mean, rstd, weight, bias, groups, *arguments, workspace
    )  # fmt: skip
    if status:
        _raise(status)


def conv3x3(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y):
    B, C, H, W = x.shape
    tile = _winograd.choose(B, C, weight.shape[0], H, W)
    if not tile:
        return _direct(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y)
    inputs = x.contiguous(memory_format=torch.channels_last)
    out = y
    if not y.is_contiguous(memory_format=torch.channels_last):
        out = torch.empty_like(y, memory_format=torch.channels_last)
    packed = _winograd.filters(weight, tile, _pack)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    status = _C.conv3x3(
        torch.get_num_threads(), inputs, packed, tile, _float(bias), _rows(add), residual, groups,
        _float(norm_weight), _float(norm_bias), eps, _rows(scale), _rows(shift), silu, out,
    )  # fmt: skip
    if status:
        _raise(status)
    if out is not y:
        y.copy_(out)


def _direct(x, weight, bias, add, residual, groups, norm_weight, norm_bias, eps, scale, shift, silu, y):
    """The parts one after the other, in float32: this module's GroupNorm, torch's convolution."""
    h = _layout.dense(x).float()
    if groups:
        raw, h = h, torch.empty_like(h)
        affine = _float(norm_weight), _float(norm_bias)
        group_norm_silu(raw, *affine, groups, eps, None, _rows(scale), _rows(shift), silu, h, None, None)
    value = F.conv2d(h, weight.float(), None if bias is None else bias.float(), padding=1)
    if add is not None:
        value = value + add[:, :, None, None]
    y.copy_(value if residual is None else value + residual)


def _pack(weight, packed, tile):
    _C.conv3x3_pack(torch.get_num_threads(), weight, packed, tile)


def _float(value):
    return value if value is None else value.float().contiguous()


def _rows(value):
    """[B, *] in float32 with unit stride along its last axis."""
    if value is None:
        return None
    value = value.float()
    return value if value.stride(-1) == 1 else value.contiguous()
