"""`rms_norm_silu` and its gradient on every backend, against float64 and float32 PyTorch with autograd."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastdiff import ops
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import LEVELS, on_device, running_on

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# shape, and why
CASES = {
    "64 channels": (2, 64, 8, 8),
    "channels not a multiple of 8": (2, 15, 4, 6),
    "one channel": (2, 1, 5, 3),
    "1x1": (3, 24, 1, 1),
    "odd and not square": (2, 16, 7, 11),
    "several tiles, the last one short": (1, 32, 20, 13),
    "long": (1, 4, 67, 65),
    "several tiles for one program": (1, 128, 16, 16),
    "full tiles of several samples": (2, 64, 16, 32),
    "sequence": (2, 16, 13),
    "no space": (3, 16),
    "volume": (2, 8, 2, 3, 5),
    "large batch": (67, 8, 1, 3),
    "more channels than a block holds": (1, 4400, 2, 3),
    "more channels than a block holds in vectors": (1, 4352, 4, 4),
}
NAMES = ("x", "weight", "scale", "shift")


def inputs(shape, dtype, device, absent=(), weight_dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name in NAMES:
        size = {"x": shape, "weight": shape[1:2]}.get(name, shape[:2])
        value = torch.randn(size, generator=generator)
        values[name] = None if name in absent else value.to(device, weight_dtype if name == "weight" else dtype)
    return values


def wide(value, like):
    """[B, C] or [C] beside [B, C, *]."""
    return value.reshape(*value.shape[-2:], *(1,) * (like.dim() - 2)) if value.dim() == 2 else wide(value[None], like)


def eager(x, weight, scale, shift, silu=True, eps=0.0, floor=1e-12):
    """What lucidrains' U-Net does, and torch.nn.RMSNorm where there is an eps."""
    if eps:
        h = x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)
    else:
        h = F.normalize(x, dim=1, eps=floor) * x.shape[1] ** 0.5
    h = h if weight is None else h * wide(weight, x)
    h = h if scale is None else h * (1 + wide(scale, x))
    h = h if shift is None else h + wide(shift, x)
    return F.silu(h) if silu else h


def with_gradients(function, arguments, grad_y):
    leaves = {name: None if value is None else value.detach().requires_grad_() for name, value in arguments.items()}
    y = function(**leaves)
    y.backward(grad_y.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves.values() if leaf is not None)]


def in_pytorch(arguments, grad_y, dtype, **options):
    wide = {name: None if value is None else value.to("cpu", dtype) for name, value in arguments.items()}
    return with_gradients(lambda **a: eager(**a, **options), wide, grad_y.to("cpu", dtype))


def upstream(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


@functools.cache
def eager_errors(shape, absent, options, draws=16):
    """float32 eager's error in y and each gradient: the largest of several draws, for on few elements one is luck."""
    errors = []
    for seed in range(draws):
        arguments, grad_y = inputs(shape, torch.float32, "cpu", absent, seed=seed), upstream(shape, seed)
        exact, plain = (in_pytorch(arguments, grad_y, kind, **dict(options)) for kind in (torch.float64, torch.float32))
        errors.append([error_of(result, wide) for result, wide in zip(plain, exact, strict=True)])
    return [max(each) for each in zip(*errors, strict=True)]


def check(arguments, memory_format=torch.contiguous_format, usual=True, **options):
    """y and every gradient within the budget, in their inputs' dtypes and x's layout; `usual`: x is like `inputs`'."""
    shape = tuple(arguments["x"].shape)
    absent = tuple(name for name, value in arguments.items() if value is None)
    grad_y = upstream(shape).to(arguments["x"])
    exact, plain = (in_pytorch(arguments, grad_y, kind, **options) for kind in (torch.float64, torch.float32))
    errors = [error_of(result, wide) for result, wide in zip(plain, exact, strict=True)]
    if usual:
        errors = map(max, errors, eager_errors(shape, absent, tuple(options.items())))
    given = {**arguments, "x": arguments["x"].contiguous(memory_format=memory_format)}
    results = with_gradients(lambda **a: ops.rms_norm_silu(**a, **options), given, grad_y)
    assert results[0].stride() == given["x"].stride() and results[1].stride() == given["x"].stride()
    for result, wide, error in zip(results, exact, errors, strict=True):
        assert_in_budget(result, wide, error)


def formats(shape):
    return [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_budget(backend, device, shape, dtype):
    for memory_format in formats(shape):
        check(inputs(shape, dtype, device), memory_format)


@pytest.mark.parametrize("dtype", DTYPES)
def test_options(backend, device, dtype):
    shape = (2, 12, 5, 6)
    for memory_format in formats(shape):
        for absent in (["weight"], ["scale"], ["shift"], ["weight", "scale", "shift"]):
            check(inputs(shape, dtype, device, absent), memory_format)
        check(inputs(shape, dtype, device), memory_format, silu=False)
        check(inputs(shape, dtype, device), memory_format, eps=0.5)
        check(inputs(shape, dtype, device, weight_dtype=dtype), memory_format)


def test_eps_without_floor_is_rms_norm(backend, device):
    x, weight = torch.randn(2, 12, 5, 6, device=device), torch.randn(12, device=device)
    expected = F.rms_norm(x.movedim(1, -1), (12,), weight, eps=1e-6).movedim(-1, 1)
    for value in (x, torch.zeros_like(x)):
        expected = F.rms_norm(value.movedim(1, -1), (12,), weight, eps=1e-6).movedim(-1, 1)
        y = ops.rms_norm_silu(value, weight, eps=1e-6, floor=0.0, silu=False)
        assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_the_floor_holds(backend, device):
    """Positions below, above and far below it, in one tile: there the norm is a constant to the gradient."""
    shape = (1, 8, 3, 5)
    arguments = inputs(shape, torch.float32, device, ("scale", "shift"))
    arguments["x"][..., 0] *= 1e-3
    arguments["x"][..., 1] = 0
    arguments["x"][..., 2] *= 10
    for memory_format in formats(shape):
        check(arguments, memory_format, usual=False, floor=0.5)
        check(arguments, memory_format, usual=False, floor=1e-3)


def test_positions_of_zeros(backend, device):
    """As F.normalize has it: 0, with a gradient of 1e12."""
    x = torch.zeros(1, 4, 2, 3, device=device, requires_grad=True)
    y = ops.rms_norm_silu(x, silu=False)
    y.backward(torch.ones_like(y))
    assert not y.any() and torch.allclose(x.grad, torch.full_like(x, 2e12), rtol=1e-5)


def test_golden_norm_of_lucidrains(backend, device):
    """Block 1 of a residual block of denoising-diffusion-pytorch 2.3.4."""
    saved = np.load(Path(__file__).parents[1] / "data" / "lucidrains_block.npz")
    tensors = {name: torch.from_numpy(saved[name]).to(device) for name in saved.files}
    y = ops.rms_norm_silu(tensors["x"], tensors["g"], scale=tensors["scale"], shift=tensors["shift"])
    assert torch.allclose(y, tensors["y"], rtol=1e-5, atol=2e-6)


def test_float64_and_gradcheck(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    for memory_format in formats((2, 6, 2, 3)):
        arguments = inputs((2, 6, 2, 3), torch.float64, device, weight_dtype=torch.float64)
        check(arguments, memory_format)
        check(arguments, memory_format, eps=0.1)
        given = {**arguments, "x": arguments["x"].contiguous(memory_format=memory_format)}
        leaves = [given[name].requires_grad_() for name in NAMES]
        assert torch.autograd.gradcheck(lambda *each: ops.rms_norm_silu(**dict(zip(NAMES, each, strict=True))), leaves)


def test_the_size_of_x_does_not_matter(backend, device):
    """Far above the floor, to the bit; the gradient is as much smaller."""
    arguments = inputs((2, 16, 3, 5), torch.float32, device)

    def run(size):
        given = arguments | {"x": arguments["x"] * size}
        y, grad_x, *rest = with_gradients(ops.rms_norm_silu, given, upstream((2, 16, 3, 5)).to(device))
        return [y, grad_x * size, *rest]

    for size in (2.0**40, 2.0**-24):
        assert all(same_bits(a, b) for a, b in zip(run(size), run(1.0), strict=True))


def test_nan_stays_in_its_position(backend, device):
    for memory_format in formats((2, 8, 3, 3)):
        x = torch.randn(2, 8, 3, 3, device=device).contiguous(memory_format=memory_format)
        x[0, 1, 1, 1] = float("nan")
        y = ops.rms_norm_silu(x)
        assert y[0, :, 1, 1].isnan().all() and y.isnan().sum() == 8


def test_any_strides(backend, device):
    arguments = inputs((4, 16, 6, 8), torch.float32, device)
    x = torch.randn(8, 32, 6, 8, device=device)[::2, ::2]
    both = torch.randn(4, 32, device=device).chunk(2, dim=1)
    transposed = torch.randn(16, 4, device=device).t(), torch.randn(1, 16, device=device).expand(4, 16)
    for scale, shift in (both, transposed):
        given = {**arguments, "x": x, "scale": scale, "shift": shift}
        dense = {name: value.contiguous() for name, value in given.items()}
        grad_y = torch.randn(4, 16, 8, 6, device=device).transpose(2, 3)
        strided = with_gradients(ops.rms_norm_silu, given, grad_y)
        plain = with_gradients(ops.rms_norm_silu, dense, grad_y.contiguous())
        assert strided[0].is_contiguous() and all(same_bits(a, b) for a, b in zip(strided, plain, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_bits_do_not_depend_on_batch_or_position(backend, device, memory_format):
    arguments = inputs((3, 16, 5, 7), torch.float32, device)

    def run(which):
        part = {name: value if name == "weight" else value[which] for name, value in arguments.items()}
        part["x"] = part["x"].contiguous(memory_format=memory_format)
        return with_gradients(ops.rms_norm_silu, part, torch.ones_like(part["x"]))

    together = run(slice(0, 3))
    for b in range(3):
        alone = run(slice(b, b + 1))
        for i in (0, 1, 3, 4):  # y and the gradients that have a batch axis
            assert same_bits(alone[i], together[i][b : b + 1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(3, 16, 33, 31), (1, 8, 130, 129), (2, 64, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_alignment(level, memory_format, shape, dtype):
    with running_on(f"cpu-{level}"):
        arguments = inputs(shape, dtype, "cpu")
        arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
        grad_y = upstream(shape).to(dtype)

        def run(**change):
            return with_gradients(ops.rms_norm_silu, {**arguments, **change}, grad_y)

        threads, results = torch.get_num_threads(), []
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            results.append(run())
        torch.set_num_threads(threads)
        storage = torch.empty(arguments["x"].numel() + 3, dtype=dtype)
        shifted = storage[3:].as_strided(shape, arguments["x"].stride(), 3)
        results.append(run(x=shifted.copy_(arguments["x"])))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_the_gradients_asked_for(backend, device):
    arguments = inputs((2, 8, 3, 3), torch.float32, device)
    for name in NAMES:
        leaves = {key: value.clone().requires_grad_(key == name) for key, value in arguments.items()}
        ops.rms_norm_silu(**leaves).sum().backward()
        assert [key for key, leaf in leaves.items() if leaf.grad is not None] == [name]


@pytest.mark.parametrize("shape", [(2, 8, 0, 3), (0, 8, 3, 3)], ids=["no pixel", "no sample"])
def test_nothing(backend, device, shape):
    arguments = inputs(shape, torch.float32, device)
    results = with_gradients(ops.rms_norm_silu, arguments, torch.zeros(shape, device=device))
    assert results[0].shape == shape and not any(gradient.any() for gradient in results[1:])


X = torch.zeros(2, 6, 4, 4)
BAD = [
    (dict(x=1), TypeError, "x must be a tensor, got int"),
    (dict(x=X.int()), ValueError, "x must be float32"),
    (dict(x=X[0, 0, 0]), ValueError, "x must have shape"),
    (dict(eps=-1.0), ValueError, "eps must be finite and not negative, got -1.0"),
    (dict(floor=float("nan")), ValueError, "floor must be finite"),
    (dict(floor=0.0), ValueError, "floor must be positive where eps is 0, got 0"),
    (dict(weight=1), TypeError, "weight must be a tensor, got int"),
    (dict(weight=torch.ones(5)), ValueError, r"weight must have shape \[6\], got \[5\]"),
    (dict(weight=torch.ones(6).half()), ValueError, "weight must be float32 or x's"),
    (dict(scale=torch.zeros(2, 6, dtype=torch.int64)), ValueError, "scale must be float32"),
    (dict(shift=torch.zeros(2, 6, 1, 1)), ValueError, r"shift must have shape \[2, 6\]"),
    (dict(shift=torch.zeros(2, 6, device="meta")), ValueError, "shift must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.rms_norm_silu(**{"x": X, **change})
