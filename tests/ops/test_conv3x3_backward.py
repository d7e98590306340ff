"""The gradients of `conv3x3` against float64: by Winograd's algorithm and by torch's convolution."""

import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff import ops
from fastdiff.ops import _winograd
from tests.ops.accuracy import same_bits, ulp
from tests.ops.conftest import LEVELS, running_on

# [B, C, H, W], O, and why
CASES = {
    "whole tiles": ((2, 32, 8, 8), 32),
    "odd and not square": ((2, 48, 7, 11), 33),
    "one pixel": ((5, 32, 1, 1), 32),
    "one row": ((1, 16, 1, 40), 16),
    "channels not a multiple of a vector": ((1, 39, 9, 6), 70),
    "few outputs": ((2, 64, 6, 6), 3),
    "few inputs": ((2, 3, 6, 6), 40),
    "more tiles than the depth of a product": ((2, 16, 44, 44), 16),
    "more tiles than a block": ((2, 176, 60, 44), 80),
}
NAMES = ("x", "weight", "bias", "add", "residual")


@pytest.fixture(params=["reference", *(f"cpu-{level}" for level in LEVELS)])
def backend(request):
    with running_on(request.param):
        yield request.param


@pytest.fixture(params=[_winograd.LARGE, _winograd.DIRECT], ids=["winograd", "direct"])
def tile(request, monkeypatch):
    monkeypatch.setattr(_winograd, "choose_gradients", lambda *shape: (request.param, request.param))
    return request.param


def inputs(shape, O, dtype=torch.float32, memory_format=torch.channels_last):  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    B, C, H, W = shape
    sizes = {"x": shape, "weight": (O, C, 3, 3), "bias": (O,), "add": (B, O), "residual": (B, O, H, W)}
    values = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    values["weight"] /= (9 * C) ** 0.5
    for name in ("x", "weight", "residual"):
        values[name] = values[name].to(memory_format=memory_format)
    return {name: value.to(dtype) if name in ("x", "residual") else value for name, value in values.items()}


def upstream(shape, O, dtype=torch.float32, memory_format=torch.channels_last):  # noqa: E741
    B, _, H, W = shape
    grad_y = torch.randn(B, O, H, W, generator=torch.Generator().manual_seed(1))
    return grad_y.to(dtype).contiguous(memory_format=memory_format)


def gradients(function, arguments, grad_y, wanted=NAMES):
    leaves = {name: value.detach().clone().requires_grad_(name in wanted) for name, value in arguments.items()}
    function(**leaves).backward(grad_y)
    return {name: leaf.grad for name, leaf in leaves.items()}


def exact(x, weight, bias=None, add=None, residual=None):
    y = F.conv2d(x, weight, bias, padding=1)
    y = y if add is None else y + add[:, :, None, None]
    return y if residual is None else y + residual


def check(arguments, grad_y, wanted=NAMES):
    found = gradients(ops.conv3x3, arguments, grad_y, wanted)
    wide = {name: value.double() for name, value in arguments.items()}
    right = gradients(exact, wide, grad_y.double(), wanted)
    for name, value in arguments.items():
        if name not in wanted:
            assert found[name] is None
            continue
        assert found[name].dtype is value.dtype and found[name].stride() == value.stride(), name
        error, allowed = (found[name].double() - right[name]).abs(), 1e-5 * right[name].abs().max()
        if value.dtype is not torch.float32:
            allowed = allowed + 0.51 * ulp(right[name], value.dtype)
        assert (error <= allowed).all(), f"{name}: {(error.max() / right[name].abs().max()).item():.2g} of the maximum"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape, O", CASES.values(), ids=CASES)
def test_values(backend, tile, shape, O, memory_format):  # noqa: E741
    check(inputs(shape, O, memory_format=memory_format), upstream(shape, O, memory_format=memory_format))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["whole tiles", "odd and not square", "few inputs"])
def test_16_bits_are_rounded_once(backend, tile, dtype, case):
    check(inputs(*CASES[case], dtype), upstream(*CASES[case], dtype))


@pytest.mark.parametrize("wanted", [(name,) for name in NAMES])
def test_each_gradient_alone(backend, tile, wanted):
    case = CASES["odd and not square"]
    check(inputs(*case), upstream(*case), wanted)


def test_the_upstream_gradient_may_have_any_layout(backend, tile):
    case = CASES["odd and not square"]
    check(inputs(*case), upstream(*case).repeat_interleave(2, 3)[..., ::2])
    check(inputs(*case), upstream(*case)[:, :1, :1, :1].expand(2, 33, 7, 11))


def test_float64():
    arguments = {name: value.double().requires_grad_() for name, value in inputs((2, 16, 3, 4), 16).items()}
    assert torch.autograd.gradcheck(lambda *values: ops.conv3x3(**dict(zip(NAMES, values, strict=True))),
                                    tuple(arguments.values()), fast_mode=True)  # fmt: skip


@pytest.mark.parametrize("shape, O", [((8, 32, 17, 13), 48), ((2, 64, 60, 60), 70)])
def test_bits_do_not_depend_on_threads(tile, shape, O):  # noqa: E741
    arguments, grad_y, threads = inputs(shape, O), upstream(shape, O), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(ops.conv3x3, arguments, grad_y, NAMES[:2])
        for count in (2, 3, 7) if tile else ():  # oneDNN's sums are its own
            torch.set_num_threads(count)
            several = gradients(ops.conv3x3, arguments, grad_y, NAMES[:2])
            assert all(same_bits(one[name], several[name]) for name in NAMES[:2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", _winograd.MEASURED_GRADIENTS, ids=str)
def test_the_choice_is_what_was_measured(shape):
    assert _winograd.choose_gradients(*shape) == _winograd.MEASURED_GRADIENTS[shape]


def test_the_switch():
    with ops.winograd(False):
        assert _winograd.choose_gradients(8, 64, 64, 32, 32) == (_winograd.DIRECT, _winograd.DIRECT)


def test_filters_of_training_are_not_kept():
    arguments = inputs((2, 32, 16, 16), 32)
    weight = arguments["weight"].requires_grad_()
    ops.conv3x3(arguments["x"], weight).sum().backward()
    assert id(weight) not in _winograd._kept
    with torch.no_grad():
        ops.conv3x3(arguments["x"], weight)
    assert id(weight) in _winograd._kept


def test_opcheck():
    arguments = [value.requires_grad_() for value in inputs((2, 16, 4, 5), 8).values()]
    torch.library.opcheck(
        torch.ops.fastdiff.conv3x3, (*arguments, 0, None, None, 1e-5, None, None, False, "")
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.fastdiff.conv3x3_backward,
        (upstream((2, 16, 4, 5), 8), arguments[0].detach(), arguments[1].detach(), [True, False], ""),
    )  # fmt: skip


def test_compiles_whole(backend):
    arguments, grad_y = inputs((2, 16, 4, 5), 8), upstream((2, 16, 4, 5), 8)
    compiled = torch.compile(ops.conv3x3, fullgraph=True, backend="aot_eager")
    found, right = (gradients(function, arguments, grad_y) for function in (compiled, ops.conv3x3))
    for name in NAMES:
        torch.testing.assert_close(found[name], right[name], msg=name)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4)])
def test_empty(backend, shape):
    x, weight = torch.zeros(shape, requires_grad=True), torch.ones(8, 16, 3, 3, requires_grad=True)
    ops.conv3x3(x, weight).sum().backward()
    assert x.grad.shape == x.shape and torch.equal(weight.grad, torch.zeros_like(weight))


def test_the_gradient_has_no_gradient():
    x, weight = torch.zeros(1, 16, 4, 4, requires_grad=True), torch.ones(16, 16, 3, 3)
    (first,) = torch.autograd.grad(ops.conv3x3(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        first.sum().backward()


def test_a_backend_is_asked_of_the_backward_pass_too():
    """That of the forward pass, whatever the context is by then."""
    x = inputs((2, 32, 16, 16), 32)["x"].requires_grad_()
    with fastdiff.use_backend("reference"):
        y = ops.conv3x3(x, torch.ones(32, 32, 3, 3))
    y.sum().backward()
    reference, x.grad = x.grad, None
    ops.conv3x3(x, torch.ones(32, 32, 3, 3)).sum().backward()
    assert not torch.equal(x.grad, reference) and torch.allclose(x.grad, reference, atol=1e-2)
