"""Convolutions and linear layers as products, against float64 at every SIMD level."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff.ops import _winograd, native_convolution
from tests.ops.accuracy import same_bits, ulp
from tests.ops.conftest import LEVELS, running_on

# [B, C, H, W], O, kernel, stride, padding, and why
CASES = {
    "rows of inputs lie in x": ((2, 32, 5, 7), 48, 1, 1, 0),
    "a panel that is not full": ((1, 17, 4, 4), 21, 1, 1, 0),
    "one pixel": ((1, 40, 1, 1), 16, 1, 1, 0),
    "every other pixel": ((2, 24, 6, 8), 32, 3, 2, 1),
    "odd size, no frame": ((2, 16, 9, 7), 8, 3, 2, 0),
    "three channels": ((2, 3, 8, 8), 40, 3, 1, 1),
    "a large kernel": ((1, 4, 12, 10), 12, 7, 1, 3),
    "an even kernel": ((1, 8, 8, 8), 16, 4, 2, 1),
    "more rows than a block": ((3, 64, 16, 16), 32, 1, 1, 0),
    "a frame around one tap": ((1, 8, 3, 3), 8, 1, 1, 1),
    "long sums": ((1, 256, 6, 6), 33, 3, 2, 1),
    "an odd number of terms, of which rows lie in x": ((2, 9, 5, 5), 40, 1, 1, 0),
}


@pytest.fixture(params=LEVELS)
def level(request):
    with running_on(f"cpu-{request.param}"):
        yield request.param


def inputs(shape, O, kernel, stride, padding, dtype=torch.float32, of_weight=torch.float32):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    B, C, H, W = shape
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (H, W)]
    x, weight, bias, residual = (
        torch.randn(size, generator=generator) for size in (shape, (O, C, kernel, kernel), (O,), (B, O, *size))
    )
    return x.to(dtype), (weight / (C * kernel**2) ** 0.5).to(of_weight), bias, residual.to(dtype)


def check(y, exact):
    allowed = 2e-6 * exact.abs().max()
    if y.dtype is not torch.float32:
        allowed = allowed + 0.51 * ulp(exact, y.dtype)
    assert y.shape == exact.shape and ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("of_weight", [torch.float32, "as x"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, O, kernel, stride, padding", CASES.values(), ids=CASES)
def test_values(level, shape, O, kernel, stride, padding, dtype, of_weight):  # noqa: E741
    """Alone, and with bias and residual; x in either layout."""
    of_weight = dtype if of_weight == "as x" else of_weight
    x, weight, bias, residual = inputs(shape, O, kernel, stride, padding, dtype, of_weight)
    exact = F.conv2d(x.double(), weight.double(), stride=stride, padding=padding)
    y = native_convolution.convolution(x, weight, stride=stride, padding=padding)
    assert y.dtype is dtype and y.is_contiguous(memory_format=torch.channels_last)
    check(y, exact)
    last = x.contiguous(memory_format=torch.channels_last)
    y = native_convolution.convolution(last, weight, bias, residual, stride=stride, padding=padding)
    check(y, exact + bias.double()[:, None, None] + residual.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape, O", [((5,), 33), ((1, 64), 16), ((2, 9, 40), 24), ((2, 3, 4, 16), 8)])
def test_linear(level, shape, O, dtype):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight, bias = torch.randn(O, shape[-1], generator=generator), torch.randn(O, generator=generator)
    weight = (weight / shape[-1] ** 0.5).to(dtype)
    residual = torch.randn(*shape[:-1], O, generator=generator).to(dtype)
    exact = F.linear(x.double(), weight.double())
    check(native_convolution.linear(x, weight), exact)
    check(native_convolution.linear(x, weight, bias, residual), exact + bias.double() + residual.double())


def test_weights_in_either_layout_give_the_same_bits(level):
    x, weight, bias, _ = inputs((1, 16, 6, 6), 24, 3, 2, 1)
    y = native_convolution.convolution(x, weight, bias, stride=2, padding=1)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert same_bits(native_convolution.convolution(x, last, bias, stride=2, padding=1), y)


def test_bits_do_not_depend_on_threads_or_batch(level):
    x, weight, bias, residual = inputs((6, 64, 20, 20), 48, 3, 2, 1)
    threads, whole = torch.get_num_threads(), None
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = native_convolution.convolution(x, weight, bias, residual, stride=2, padding=1)
            assert whole is None or same_bits(y, whole)
            whole = y
    finally:
        torch.set_num_threads(threads)
    assert same_bits(native_convolution.convolution(x[3:], weight, bias, residual[3:], stride=2, padding=1), whole[3:])


def test_nan_stays_in_the_sums_that_read_it(level):
    x, weight, *_ = inputs((1, 8, 6, 6), 8, 3, 2, 1)
    x[0, 2, 5, 5] = torch.nan
    y = native_convolution.convolution(x, weight, stride=2, padding=1)
    assert y[0, :, 2, 2].isnan().all() and y.isnan().sum() == 8


def test_empty(level):
    assert native_convolution.convolution(torch.zeros(0, 8, 4, 4), torch.zeros(5, 8, 1, 1)).shape == (0, 5, 4, 4)


def test_a_changed_weight_is_seen(level):
    x, weight = torch.ones(2, 16), torch.ones(4, 16)
    assert torch.equal(native_convolution.linear(x, weight), torch.full((2, 4), 16.0))
    weight.mul_(2)
    assert torch.equal(native_convolution.linear(x, weight), torch.full((2, 4), 32.0))


def test_the_weight_is_packed_once_and_while_that_is_allowed(level, monkeypatch):
    packs, packed = [], native_convolution._packed
    monkeypatch.setattr(native_convolution, "_packed", lambda *of: (packs.append(1), packed(*of))[1])
    x, weight = torch.ones(2, 16), torch.ones(4, 16)
    for _ in range(3):
        native_convolution.linear(x, weight)
    assert len(packs) == 1
    with _winograd.keeping(False):
        native_convolution.linear(x, weight)
    assert len(packs) == 2
