"""`group_norm_silu` and its gradients on every backend, against float64 and float32 PyTorch with autograd."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch.nn import functional as F

import fastdiff
from fastdiff import ops
from fastdiff.ops import reference, rng
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import LEVELS, on_device, running_on

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# shape, groups, and why
CASES = {
    "64 channels": ((2, 64, 4, 4), 32),
    "192 channels": ((1, 192, 3, 5), 32),
    "576 channels": ((1, 576, 2, 3), 32),
    "1152 channels": ((1, 1152, 2, 2), 32),
    "one group": ((2, 12, 5, 3), 1),
    "groups = C": ((2, 8, 5, 7), 8),
    "channels not a multiple of 8": ((2, 15, 4, 6), 5),
    "channels of 8 elements": ((2, 15, 2, 4), 5),
    "channels of 16 elements": ((2, 15, 4, 4), 5),
    "channels of 32 elements": ((2, 15, 4, 8), 5),
    "1x1": ((3, 64, 1, 1), 16),
    "odd and not square": ((2, 16, 7, 11), 4),
    "longer than a tile": ((1, 4, 67, 65), 2),
    "sequence": ((2, 16, 13), 4),
    "no space": ((3, 16), 4),
    "volume": ((2, 16, 2, 3, 5), 4),
    "large batch": ((67, 8, 1, 3), 2),
    "groups wider than a tile": ((1, 1016, 4, 4), 1),
}
NAMES = ("x", "weight", "bias", "add", "scale", "shift")
KEY, LAYER = rng.make_rng(-5, 7), 3


def inputs(shape, dtype, device, absent=(), weight_dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    B, C = shape[:2]
    sizes = {"x": shape, "weight": (C,), "bias": (C,)}
    values = {}
    for name in NAMES:
        value = torch.randn(sizes.get(name, (B, C)), generator=generator)
        kind = weight_dtype if name in ("weight", "bias") else dtype
        values[name] = None if name in absent else value.to(device, kind)
    return values


def ids_of(shape):
    return torch.arange(shape[0]) * 1000003 + 2**31


def kept(shape, dropout, sample_ids, layer=LAYER):
    """The mask, of words drawn one by one."""
    i = torch.arange(math.prod(shape[1:]))
    masks = []
    for sample in sample_ids.tolist():
        seed, draw = (int(word) for word in KEY)
        words = torch.stack(reference.philox((i // 4, sample, draw, 256 + layer), (seed % 2**32, seed % 2**64 >> 32)))
        masks.append(words[i % 4, i] >= math.floor(dropout * 2**32))
    return torch.stack(masks).reshape(shape)


def eager(x, weight, bias, add, scale, shift, groups, silu=True, eps=1e-5, dropout=0.0, residual=None):
    """What everybody writes, with the mask that it should be."""

    def wide(value):
        return value.reshape(*value.shape, *(1,) * (x.dim() - 2))

    h = F.group_norm(x if add is None else x + wide(add), groups, weight, bias, eps)
    h = h if scale is None else h * (1 + wide(scale))
    h = h if shift is None else h + wide(shift)
    h = F.silu(h) if silu else h
    if dropout:
        h = torch.where(kept(x.shape, dropout, ids_of(x.shape)), h / (1 - dropout), 0)
    return h if residual is None else h + residual


def fused(dropout=0.0, **arguments):
    x = arguments["x"]
    counters = dict(rng=KEY.to(x.device), sample_ids=ids_of(x.shape).to(x.device), layer=LAYER) if dropout else {}
    return ops.group_norm_silu(dropout=dropout, **counters, **arguments)


def with_gradients(function, arguments, grad_y):
    leaves = {name: None if value is None else value.detach().requires_grad_() for name, value in arguments.items()}
    y = function(**leaves)
    y.backward(grad_y.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves.values() if leaf is not None)]


def in_pytorch(arguments, grad_y, groups, dtype, **options):
    wide = {name: None if value is None else value.to("cpu", dtype) for name, value in arguments.items()}
    return with_gradients(lambda **a: eager(groups=groups, **options, **a), wide, grad_y.to("cpu", dtype))


def upstream(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))


@functools.cache
def eager_errors(shape, groups, absent, residual, options, draws=16):
    """float32 eager's error in y and each gradient: the largest of several draws, for on few elements one is luck."""
    errors = []
    for seed in range(draws):
        arguments, grad_y = inputs(shape, torch.float32, "cpu", absent, seed=seed), upstream(shape, seed)
        arguments |= {"residual": upstream(shape, seed + 1)} if residual else {}
        exact, plain = (
            in_pytorch(arguments, grad_y, groups, dtype, **dict(options)) for dtype in (torch.float64, torch.float32)
        )
        errors.append([error_of(result, wide) for result, wide in zip(plain, exact, strict=True)])
    return [max(each) for each in zip(*errors, strict=True)]


def check(arguments, groups, memory_format=torch.contiguous_format, usual=True, **options):
    """y and every gradient within the budget, in their inputs' dtypes and x's layout; `usual`: x is like `inputs`'."""
    shape = tuple(arguments["x"].shape)
    absent = tuple(name for name, value in arguments.items() if value is None)
    grad_y = upstream(shape).to(arguments["x"])
    exact, plain = (in_pytorch(arguments, grad_y, groups, dtype, **options) for dtype in (torch.float64, torch.float32))
    errors = [error_of(result, wide) for result, wide in zip(plain, exact, strict=True)]
    if usual:
        errors = map(max, errors, eager_errors(shape, groups, absent, "residual" in arguments, tuple(options.items())))
    given = {**arguments, "x": arguments["x"].contiguous(memory_format=memory_format)}
    results = with_gradients(lambda **a: fused(groups=groups, **options, **a), given, grad_y)
    assert results[0].stride() == given["x"].stride() and results[1].stride() == given["x"].stride()
    for result, wide, error in zip(results, exact, errors, strict=True):
        assert_in_budget(result, wide, error)


def formats(shape):
    return [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), CASES.values(), ids=CASES)
def test_budget(backend, device, shape, groups, dtype):
    for memory_format in formats(shape):
        check(inputs(shape, dtype, device, ("add", "scale", "shift")), groups, memory_format)
        check(inputs(shape, dtype, device), groups, memory_format)


@pytest.mark.parametrize("dtype", DTYPES)
def test_options(backend, device, dtype):
    shape = (2, 12, 5, 6)
    for memory_format in formats(shape):
        for absent in (["weight", "bias"], ["weight"], ["bias"], ["add"], ["scale"], ["shift"]):
            check(inputs(shape, dtype, device, absent), 3, memory_format)
        check(inputs(shape, dtype, device), 3, memory_format, silu=False)
        check(inputs(shape, dtype, device), 3, memory_format, eps=0.5)
        check(inputs(shape, dtype, device, weight_dtype=dtype), 3, memory_format)


# Shapes of dropout: a Philox block of one channel, of two; of a tile, of two; a sample that ends within a block.
MASKED = {
    "whole blocks": ((3, 16, 4, 6), 4),
    "channels of 8 elements": ((2, 15, 2, 4), 5),
    "channels of 16 elements": ((2, 15, 2, 8), 5),
    "odd and not square": ((2, 16, 7, 11), 4),
    "1x1": ((3, 15, 1, 1), 5),
    "no space": ((2, 6), 3),
    "longer than a tile": ((1, 4, 67, 65), 2),
    "long, whole blocks": ((1, 2, 132, 130), 1),
    "groups wider than a tile": ((1, 1016, 4, 5), 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), MASKED.values(), ids=MASKED)
def test_dropout_and_residual(backend, device, shape, groups, dtype):
    for memory_format in formats(shape):
        arguments = inputs(shape, dtype, device, ("add",)) | {"residual": upstream(shape, 1).to(device, dtype)}
        check(arguments, groups, memory_format, dropout=0.3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_alone(backend, device, dtype):
    shape = (2, 12, 5, 6)
    for memory_format in formats(shape):
        arguments = inputs(shape, dtype, device) | {"residual": upstream(shape, 1).to(device, dtype)}
        check(arguments, 3, memory_format)
        check(arguments, 3, memory_format, silu=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), MASKED.values(), ids=MASKED)
def test_the_mask_is_that_of_the_counter(backend, device, shape, groups, dtype):
    """To the bit on every backend, in both layouts, whatever the samples beside."""
    ids, p = torch.tensor([2**32 - 1, 5, 0])[: shape[0]], 0.25
    mask = kept(shape, p, ids, layer=2**32 - 257)
    for memory_format in formats(shape):
        x = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=memory_format).requires_grad_()
        bias = torch.ones(shape[1], device=device, requires_grad=True)
        options = dict(silu=False, dropout=p, rng=KEY.to(device), sample_ids=ids.to(device), layer=2**32 - 257)
        y = ops.group_norm_silu(x, groups, None, bias, **options)
        assert torch.equal(y.detach().cpu(), (mask / 0.75).to(dtype))
        (gradient,) = torch.autograd.grad(y, bias, torch.ones_like(y))
        assert torch.allclose(gradient.cpu(), (mask / 0.75).transpose(0, 1).flatten(1).sum(1), rtol=1e-5)


def test_no_dropout_is_none(backend, device):
    arguments = inputs((2, 8, 3, 3), torch.float32, device)
    counters = dict(rng=KEY.to(device), sample_ids=torch.arange(2, device=device))
    expected = ops.group_norm_silu(groups=4, **arguments)
    for dropout in (0, 0.0):
        assert same_bits(ops.group_norm_silu(groups=4, dropout=dropout, **counters, **arguments), expected)


def test_a_word_that_is_the_threshold_is_kept(backend, device):
    ids = torch.tensor([5])
    word = int(reference.philox((torch.tensor([0]), 5, 7, 256), (2**32 - 5, 2**32 - 1))[2])
    x, bias = torch.zeros(1, 1, 4, device=device), torch.ones(1, device=device)
    for threshold, is_kept in ((word, True), (word + 1, False)):
        options = dict(dropout=threshold / 2**32, rng=KEY.to(device), sample_ids=ids.to(device))
        y = ops.group_norm_silu(x, 1, None, bias, silu=False, **options)
        assert bool(y[0, 0, 2] != 0) is is_kept


def test_what_is_dropped_is_0_whatever_it_was(backend, device):
    """0 * inf is NaN."""
    bias = torch.full((4,), math.inf, device=device)
    x, residual = torch.zeros(2, 1, 4, 5, 5, device=device)
    y = ops.group_norm_silu(x, 4, None, bias, dropout=0.5, rng=KEY.to(device),
                            sample_ids=torch.zeros(1, dtype=torch.int64, device=device), residual=residual)  # fmt: skip
    assert not y.isnan().any() and 0 < (y == 0).sum() < 100


def test_masks_keep_as_many_as_they_should():
    """Of 2^18 elements; other layers, draws and samples have other masks."""
    x, ids = torch.zeros(1, 4, 256, 256), torch.zeros(1, dtype=torch.int64)

    def mask(p=0.1, key=KEY, ids=ids, layer=0):
        return ops.group_norm_silu(x, 1, None, torch.ones(4), silu=False, dropout=p, rng=key, sample_ids=ids,
                                   layer=layer) != 0  # fmt: skip

    for p in (1e-3, 0.1, 0.9):
        assert abs(int((~mask(p)).sum()) - p * 2**18) < 5 * math.sqrt(p * (1 - p) * 2**18)
    others = mask(layer=1), mask(key=rng.make_rng(-5, 8)), mask(ids=ids + 1), mask(key=rng.make_rng(-6, 7))
    for other in others:
        assert abs(float((other == mask()).float().mean()) - 0.82) < 0.01


def test_the_gradient_of_a_residual_is_that_of_y(backend, device):
    x, residual, grad_y = torch.randn(3, 2, 8, 3, 3, device=device)
    ops.group_norm_silu(x, 4, residual=residual.requires_grad_()).backward(grad_y)
    assert same_bits(residual.grad, grad_y)


def dropping(x, residual):
    return fused(x=x, groups=3, residual=residual, dropout=0.4)


def test_float64_and_gradcheck(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    for memory_format in formats((2, 6, 2, 3)):
        arguments = inputs((2, 6, 2, 3), torch.float64, device, weight_dtype=torch.float64)
        check(arguments, 3, memory_format)
        given = {**arguments, "x": arguments["x"].contiguous(memory_format=memory_format)}
        leaves = [given[name].requires_grad_() for name in NAMES]

        def function(x, weight, bias, add, scale, shift):
            return ops.group_norm_silu(x, 3, weight, bias, add=add, scale=scale, shift=shift)

        assert torch.autograd.gradcheck(function, leaves)
        residual = torch.randn(2, 6, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
        check(arguments | {"residual": residual}, 3, memory_format, dropout=0.4)
        assert torch.autograd.gradcheck(dropping, (leaves[0], residual))


def test_large_mean_and_small_deviation(backend, device):
    """Sums of squares in float32 lose everything here: 1000^2 has an ulp of 0.06, the variance is 1e-4."""
    for shape in ((2, 32, 9, 7), (1, 4, 66, 65)):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        arguments = inputs(shape, torch.float32, device, ("add", "scale", "shift"))
        arguments["x"] = (1000 + 1e-2 * noise).to(device)
        for memory_format in formats(shape):
            check(arguments, 2, memory_format, usual=False)


def test_groups_of_one_value_are_their_bias(backend, device):
    arguments = inputs((1, 4, 1, 1), torch.float32, device, ("add", "scale", "shift"))
    grad_y = torch.ones(1, 4, 1, 1, device=device)
    results = with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), arguments, grad_y)
    assert torch.allclose(results[0].flatten(), F.silu(arguments["bias"]), rtol=1e-6)
    assert results[1].abs().max() < 1e-4  # 1 / sqrt(eps) = 316 times a rounding
    assert torch.equal(results[2].cpu(), torch.zeros(4))


def test_extreme_values_of_silu(backend, device):
    x = torch.tensor([-3e4, -200.0, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 3e4], device=device)
    shape = (1, 10, 1, 1)
    bias = x.clone()
    y = ops.group_norm_silu(torch.zeros(shape, device=device), 10, None, bias)
    assert torch.allclose(y.flatten().cpu(), F.silu(x.cpu()), rtol=1e-6, atol=1e-30)


def test_bfloat16_results_below_the_smallest_normal_number(backend, device):
    """avx512bf16 rounds them to 0, others as any."""
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    weight = torch.full((64,), 1e-38, device=device)
    y = ops.group_norm_silu(x, 2, weight)
    exact = eager(x.double().cpu(), weight.double().cpu(), None, None, None, None, 2)
    assert (y.double().cpu() - exact).abs().max() <= 2.0**-126 and y.double().abs().max() > 1e-38


def test_nan_stays_in_its_group(backend, device):
    x = torch.randn(2, 8, 3, 3, device=device)
    x[0, 1, 1, 1] = float("nan")
    y = ops.group_norm_silu(x, 4)
    assert y[0, :2].isnan().all() and y[0, 2:].isfinite().all() and y[1].isfinite().all()


def test_any_strides(backend, device):
    arguments = inputs((4, 16, 6, 8), torch.float32, device)
    x = torch.randn(8, 32, 6, 8, device=device)[::2, ::2]
    chunks = torch.randn(4, 48, device=device).chunk(3, dim=1)
    broadcast = torch.randn(1, 16, device=device).expand(4, 16)
    transposed = torch.randn(16, 4, device=device).t()
    residual = torch.randn(4, 6, 8, 32, device=device)[..., ::2].movedim(-1, 1)
    for add, scale, shift in (chunks, (broadcast, transposed, chunks[0])):
        given = {**arguments, "x": x, "add": add, "scale": scale, "shift": shift, "residual": residual}
        expected_y = ops.group_norm_silu(groups=4, **{name: value.contiguous() for name, value in given.items()})
        y = ops.group_norm_silu(groups=4, **given)
        assert same_bits(y, expected_y) and y.is_contiguous()
        grad_y = torch.randn(y.shape, device=device)[..., ::1].transpose(2, 3).contiguous().transpose(2, 3)
        strided = with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), given, grad_y)
        dense = {name: value.contiguous() for name, value in given.items()}
        plain = with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), dense, grad_y.contiguous())
        assert all(same_bits(a, b) for a, b in zip(strided, plain, strict=True))


def test_dense_permutations_keep_their_strides(backend, device):
    x = torch.randn(2, 6, 5, 8, device=device).permute(0, 3, 2, 1)[:, :, :, :]
    y = ops.group_norm_silu(x, 4)
    assert y.stride() == x.stride()
    assert torch.allclose(y, ops.group_norm_silu(x.contiguous(), 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_bits_do_not_depend_on_batch_or_position(backend, device, memory_format):
    arguments = inputs((3, 16, 5, 7), torch.float32, device)
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)

    def run(which):
        part = {name: value if name in ("weight", "bias") else value[which] for name, value in arguments.items()}
        part["x"] = part["x"].contiguous(memory_format=memory_format)
        grad_y = torch.ones_like(part["x"])
        return with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), part, grad_y)

    together = run(slice(0, 3))
    for b in range(3):
        alone = run(slice(b, b + 1))
        for i in (0, 1, 4, 5, 6):  # y and the gradients that have a batch axis
            assert same_bits(alone[i], together[i][b : b + 1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(3, 16, 33, 31), (1, 8, 130, 129), (2, 64, 1, 3), (1, 512, 16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bits_do_not_depend_on_threads_or_alignment(level, memory_format, shape, dtype, dropout):
    with running_on(f"cpu-{level}"):
        arguments = inputs(shape, dtype, "cpu")
        arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
        grad_y = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
        arguments |= {"residual": upstream(shape).to(dtype)} if dropout else {}

        def run(**change):
            return with_gradients(lambda **a: fused(dropout, groups=4, **a), {**arguments, **change}, grad_y)

        threads, results = torch.get_num_threads(), []
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            results.append(run())
        torch.set_num_threads(threads)
        for offset in (1, 3):
            storage = torch.empty(arguments["x"].numel() + offset, dtype=dtype)
            shifted = storage[offset:].as_strided(shape, arguments["x"].stride(), offset)
            results.append(run(x=shifted.copy_(arguments["x"])))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_the_gradients_asked_for(backend, device):
    arguments = inputs((2, 8, 3, 3), torch.float32, device)
    arguments["residual"] = torch.randn(2, 8, 3, 3, device=device)
    for name in arguments:
        leaves = {key: value.clone().requires_grad_(key == name) for key, value in arguments.items()}
        ops.group_norm_silu(groups=4, **leaves).sum().backward()
        assert [key for key, leaf in leaves.items() if leaf.grad is not None] == [name]


def test_backward_runs_on_the_backend_of_forward(monkeypatch):
    from fastdiff.ops import reference

    calls = []
    original = reference.group_norm_silu_backward
    monkeypatch.setattr(reference, "group_norm_silu_backward", lambda *a: (calls.append(1), original(*a)))
    ops._dispatch._function.cache_clear()
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    with fastdiff.use_backend("reference"):
        y = ops.group_norm_silu(x, 2)
    y.sum().backward()
    ops._dispatch._function.cache_clear()
    assert calls == [1]


def test_maps_without_a_pixel(backend, device):
    arguments = inputs((2, 8, 0, 3), torch.float32, device)
    grad_y = torch.zeros(2, 8, 0, 3, device=device)
    results = with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), arguments, grad_y)
    assert results[0].shape == (2, 8, 0, 3) and not any(gradient.any() for gradient in results[1:])


def test_empty_batches(backend, device):
    arguments = inputs((0, 8, 3, 3), torch.float32, device)
    grad_y = torch.zeros(0, 8, 3, 3, device=device)
    results = with_gradients(lambda **a: ops.group_norm_silu(groups=4, **a), arguments, grad_y)
    assert results[0].shape == (0, 8, 3, 3)
    assert torch.equal(results[2].cpu(), torch.zeros(8)) and torch.equal(results[3].cpu(), torch.zeros(8))


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    x = torch.empty((1, 2, 1 << 15, (1 << 15) + 1), dtype=torch.bfloat16)
    x[:, 0], x[:, 1] = 3.0, 1.0
    x[0, 1, -1, -1] = 2.0
    y = ops.group_norm_silu(x, 2, silu=False, eps=1e-12)
    assert y[0, 0].abs().max() == 0
    assert y[0, 1, -1, -1] > 30000 and y[0, 1, 0, 0] <= 0


def test_modules_that_use_it_copy_and_pickle():
    from fastdiff.models import norms

    module = norms.GroupNormSiLU(8, groups=4)
    x = torch.randn(2, 8, 3, 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_bits(other(x), module(x))


X = torch.zeros(2, 6, 4, 4)
GOOD = dict(x=X, groups=3, weight=torch.ones(6), bias=torch.zeros(6))
BAD = [
    (dict(x=1), TypeError, "x must be a tensor, got int"),
    (dict(x=X.int()), ValueError, "x must be float32"),
    (dict(x=X[0, 0, 0]), ValueError, "x must have shape"),
    (dict(groups=4), ValueError, "groups must be a positive int that divides C = 6, got 4"),
    (dict(groups=0), ValueError, "groups must be"),
    (dict(groups=2.0), ValueError, "groups must be"),
    (dict(eps=-1.0), ValueError, "eps must be finite"),
    (dict(eps=float("nan")), ValueError, "eps must be finite"),
    (dict(weight=torch.ones(5)), ValueError, r"weight must have shape \[6\], got \[5\]"),
    (dict(weight=torch.ones(6).half()), ValueError, "weight must be float32 or x's"),
    (dict(x=X.half(), bias=torch.zeros(6).half()), ValueError, "bias must be of weight's dtype"),
    (dict(dropout=1.0), ValueError, r"dropout must be in \[0, 1\), got 1.0"),
    (dict(dropout=-0.1), ValueError, "dropout must be in"),
    (dict(dropout=float("nan")), ValueError, "dropout must be in"),
    (dict(dropout=torch.zeros(1)), ValueError, "dropout must be in"),
    (dict(dropout=0.1), ValueError, "rng must be a tensor where dropout is not 0, got None"),
    (dict(dropout=0.1, rng=KEY), ValueError, "sample_ids must be a tensor where dropout is not 0, got None"),
    (dict(dropout=0.1, rng=1, sample_ids=ids_of(X.shape)), TypeError, "rng must be a tensor, got int"),
    (dict(dropout=0.1, rng=KEY[:1], sample_ids=ids_of(X.shape)), ValueError, r"rng must have shape \[2\]"),
    (dict(dropout=0.1, rng=KEY, sample_ids=KEY.int()), ValueError, "sample_ids must be torch.int64"),
    (dict(dropout=0.1, rng=KEY, sample_ids=ids_of(X.shape), layer=-1), ValueError, "layer must be an int in"),
    (dict(dropout=0.1, rng=KEY, sample_ids=ids_of(X.shape), layer=2**32 - 256), ValueError, "layer must be"),
    (dict(residual=X[:1]), ValueError, r"residual must have shape \[2, 6, 4, 4\]"),
    (dict(residual=X.half()), ValueError, "residual must be torch.float32"),
    (dict(add=torch.zeros(2, 6, 1, 1)), ValueError, r"add must have shape \[2, 6\]"),
    (dict(scale=torch.zeros(2, 6, dtype=torch.int64)), ValueError, "scale must be float32"),
    (dict(shift=torch.zeros(2, 6, device="meta")), ValueError, "shift must be on cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.group_norm_silu(**{**GOOD, **change})
