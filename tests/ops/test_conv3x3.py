"""`conv3x3` against float64: its algorithms, prologue, epilogue, layouts, bits, and the filters it keeps."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff import ops
from fastdiff.ops import _winograd, native_conv3x3
from tests.ops.accuracy import same_bits, ulp
from tests.ops.conftest import LEVELS, running_on

# [B, C, H, W], O, groups, and why
CASES = {
    "whole tiles": ((2, 32, 8, 8), 32, 8),
    "odd and not square": ((2, 48, 7, 11), 33, 16),
    "one pixel": ((5, 32, 1, 1), 32, 8),
    "one row": ((1, 16, 1, 40), 16, 4),
    "channels not a multiple of a vector": ((1, 39, 9, 6), 70, 3),
    "few outputs": ((2, 64, 6, 6), 3, 32),
    "few inputs": ((2, 3, 6, 6), 40, 1),
    "more tiles than a block": ((2, 16, 44, 44), 16, 1),
    "rows of tiles that are not full": ((1, 16, 10, 26), 16, 16),
    "512 channels": ((1, 512, 8, 8), 64, 32),
}
EXTRAS = ("bias", "add", "residual", "norm_weight", "norm_bias", "scale", "shift")


@pytest.fixture(params=["reference", *(f"cpu-{level}" for level in LEVELS)])
def backend(request):
    with running_on(request.param):
        yield request.param


def inputs(shape, O, dtype=torch.float32, absent=(), seed=0):  # noqa: E741
    generator = torch.Generator().manual_seed(seed)
    B, C, H, W = shape
    sizes = {"x": shape, "weight": (O, C, 3, 3), "bias": (O,), "add": (B, O), "residual": (B, O, H, W),
             "norm_weight": (C,), "norm_bias": (C,), "scale": (B, C), "shift": (B, C)}  # fmt: skip
    values = {name: torch.randn(size, generator=generator) for name, size in sizes.items() if name not in absent}
    values["weight"] /= (9 * C) ** 0.5
    return {name: value.to(dtype) if name in ("x", "residual") else value for name, value in values.items()}


def exact(x, weight, bias=None, add=None, residual=None, groups=None, silu=True, eps=1e-5, **norm):
    """In float64, from PyTorch's parts."""
    wide = {name: value.double() for name, value in norm.items()}
    h = x.double()
    if groups:
        h = F.group_norm(h, groups, wide.get("norm_weight"), wide.get("norm_bias"), eps)
        h = h * (1 + wide["scale"][:, :, None, None]) if "scale" in wide else h
        h = h + wide["shift"][:, :, None, None] if "shift" in wide else h
        h = F.silu(h) if silu else h
    y = F.conv2d(h, weight.double(), None if bias is None else bias.double(), padding=1)
    y = y if add is None else y + add.double()[:, :, None, None]
    return y if residual is None else y + residual.double()


def check(arguments, **options):
    y, right = ops.conv3x3(**arguments, **options), exact(**arguments, **options)
    assert y.dtype is arguments["x"].dtype and y.shape == right.shape and y.isfinite().all()
    error, allowed = (y.double() - right).abs(), 1e-5 * right.abs().max()
    if y.dtype is not torch.float32:
        allowed = allowed + 0.51 * ulp(right, y.dtype)
    assert (error <= allowed).all(), f"{(error.max() / right.abs().max()).item():.2g} of the maximum"
    return y


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape, O, groups", CASES.values(), ids=CASES)
def test_values(backend, shape, O, groups, memory_format):  # noqa: E741
    """Plain, and with all that stands before and after it; the output in the input's layout."""
    arguments = inputs(shape, O)
    arguments["x"] = arguments["x"].to(memory_format=memory_format)
    plain = check({name: arguments[name] for name in ("x", "weight")})
    assert plain.is_contiguous(memory_format=memory_format)
    check(arguments, groups=groups)
    check(arguments, groups=groups, silu=False, eps=1e-3)


@pytest.mark.parametrize("present", [*itertools.combinations(EXTRAS, 1), (), EXTRAS[:3]])
def test_each_extra_alone(backend, present):
    arguments = inputs((2, 32, 6, 5), 40, absent=set(EXTRAS) - set(present))
    check(arguments, groups=8 if set(present) & set(EXTRAS[3:]) else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["whole tiles", "odd and not square", "few inputs"])
def test_16_bits_are_rounded_once(backend, dtype, case):
    shape, O, groups = CASES[case]  # noqa: E741
    check(inputs(shape, O, dtype), groups=groups)


def test_float64():
    """Falls to PyTorch's convolution, and says so where C++ is asked for."""
    arguments = {name: value.double() for name, value in inputs((2, 32, 5, 6), 20).items()}
    y = ops.conv3x3(**arguments, groups=4)
    assert y.dtype is torch.float64 and (y - exact(**arguments, groups=4)).abs().max() < 1e-13
    with fastdiff.use_backend("cpu"), pytest.raises(ValueError, match="has no float64 convolution"):
        ops.conv3x3(**arguments, groups=4)


@pytest.mark.parametrize("tile, bound", [(_winograd.SMALL, 2e-6), (_winograd.LARGE, 1e-5)])
@pytest.mark.parametrize("level", LEVELS)
def test_the_error_of_each_tile_size(monkeypatch, level, tile, bound):
    monkeypatch.setattr(_winograd, "choose", lambda *shape: tile)
    with running_on(f"cpu-{level}"):
        arguments = inputs((2, 512, 9, 14), 64, absent=EXTRAS)
        right = exact(**arguments)
        assert (ops.conv3x3(**arguments) - right).abs().max() < bound * right.abs().max()


@pytest.mark.parametrize("size", [8, 32])
def test_a_large_mean_does_not_drown_a_small_deviation(backend, size):
    """In float32: mean 1000, deviation 1e-2."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 + 0.01 * torch.randn(2, 32, size, size, generator=generator)
    weight = torch.randn(16, 32, 3, 3, generator=generator) / 17
    right = exact(x, weight, groups=4)
    assert (ops.conv3x3(x, weight, groups=4) - right).abs().max() < 2e-3 * right.abs().max()


@pytest.mark.parametrize("step", [3, 4, 5, 16, 32])
def test_a_mean_that_few_pixels_make(backend, step):
    """Some of the pixels are far from the others, and may be those that a first mean is taken of."""
    arguments = inputs((2, 32, 32, 32), 32)
    arguments["x"].flatten(2)[..., ::step] += 1000
    check(arguments, groups=8)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("pixel", [0, 5])
def test_a_group_with_a_value_that_is_not_finite_is_nan(backend, pixel, silu, value):
    arguments = inputs((2, 32, 32, 32), 32)
    arguments["x"].flatten(2)[1, 3, pixel] = value
    y = ops.conv3x3(**arguments, groups=8, silu=silu)
    assert y[1].isnan().all() and y[0].isfinite().all()


def test_nan_and_inf_stay_in_their_tiles(backend):
    """And 0 in the padding stays 0 where the prologue would make it something else."""
    x, weight = torch.zeros(1, 16, 12, 12), torch.ones(16, 16, 3, 3)
    x[0, 3, 0, 0] = torch.nan
    y = ops.conv3x3(x, weight)
    assert y[0, 0, :2, :2].isnan().all() and torch.equal(y[..., 6:, 6:], torch.zeros(1, 16, 6, 6))
    y = ops.conv3x3(torch.zeros(1, 16, 12, 12), weight, groups=1, norm_bias=torch.ones(16), silu=False)
    assert torch.allclose(y[0, 0, :2, :2], torch.tensor([[64.0, 96.0], [96.0, 144.0]]), rtol=1e-5)


# ---- Bits ----


@pytest.mark.parametrize("shape, O", [((8, 32, 17, 13), 48), ((2, 64, 4, 4), 96), ((2, 56, 40, 40), 32)])
def test_bits_do_not_depend_on_threads_batch_or_position(shape, O):  # noqa: E741
    arguments = inputs(shape, O)
    arguments["x"] = arguments["x"].to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = ops.conv3x3(**arguments, groups=8)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert same_bits(ops.conv3x3(**arguments, groups=8), whole)
    finally:
        torch.set_num_threads(threads)
    samplewise = ("x", "add", "residual", "scale", "shift")
    if _winograd.choose(shape[0] // 2, shape[1], O, *shape[2:]) == _winograd.choose(*shape[:2], O, *shape[2:]):
        last = {name: value[shape[0] // 2 :] if name in samplewise else value for name, value in arguments.items()}
        assert same_bits(ops.conv3x3(**last, groups=8), whole[shape[0] // 2 :])


# ---- The choice and the filters ----


@pytest.mark.parametrize("shape", _winograd.MEASURED, ids=str)
def test_the_choice_is_what_was_measured(shape):
    assert _winograd.choose(*shape) == _winograd.MEASURED[shape]


def test_the_switch():
    assert _winograd.choose(8, 64, 64, 8, 8) == _winograd.LARGE
    with ops.winograd(False):
        assert _winograd.choose(8, 64, 64, 8, 8) == _winograd.DIRECT
        check(inputs((2, 32, 8, 8), 16), groups=8)
        with ops.winograd(True):
            assert _winograd.choose(8, 64, 64, 8, 8) == _winograd.LARGE
    assert _winograd.choose(8, 64, 64, 8, 8) == _winograd.LARGE


@pytest.fixture
def packs(monkeypatch):
    """How often filters were transformed."""
    count, pack = [], native_conv3x3._pack
    monkeypatch.setattr(native_conv3x3, "_pack", lambda *arguments: (count.append(1), pack(*arguments)))
    return count


def test_filters_are_kept_until_the_weight_changes(packs):
    arguments = inputs((2, 32, 8, 8), 16, absent=EXTRAS)
    weight = arguments["weight"]
    with fastdiff.use_backend("cpu"):
        check(arguments)
        check(arguments)
        assert len(packs) == 1
        with torch.no_grad():
            weight.mul_(2)
        check(arguments)
        assert len(packs) == 2
        weight.data = torch.randn(16, 32, 3, 3)  # other memory
        check(arguments)
        assert len(packs) == 3
        with torch.inference_mode():
            check(arguments)
        assert len(packs) == 3
        weight.data.copy_(torch.randn(16, 32, 3, 3))  # past the version counter
        check(arguments)
        assert len(packs) == 4
        for _ in range(2):  # the second time in the memory of the first, were that free
            weight.data = weight.data * 2
        check(arguments)
        assert len(packs) == 5
    kept = len(_winograd._kept)
    del weight, arguments
    gc.collect()
    assert len(_winograd._kept) < kept


def test_filters_of_another_weight_of_the_same_id_are_not_taken():
    weight, other = torch.zeros(32, 32, 3, 3), torch.zeros(1)
    stale = _winograd._kept[id(weight)] = _winograd.Kept(weight, "avx2")
    stale.weight, stale.made = weakref.ref(other), {"kind": "other's"}
    assert _winograd.kept(weight, "kind", "avx2", lambda: "made") == "made"


def test_weights_made_in_inference_mode_are_never_kept(packs):
    with torch.inference_mode(), fastdiff.use_backend("cpu"):
        arguments = inputs((2, 32, 8, 8), 16, absent=EXTRAS)
        check(arguments)
        arguments["weight"].mul_(2)
        check(arguments)
    assert len(packs) == 2


# ---- The contract ----


@pytest.mark.parametrize("options", [{}, {"groups": 4}])
def test_opcheck(options):
    arguments = inputs((2, 16, 4, 5), 8, absent=() if options else EXTRAS[3:])
    names = ("x", "weight", "bias", "add", "residual")
    torch.library.opcheck(
        torch.ops.fastdiff.conv3x3,
        (*(arguments[name] for name in names), options.get("groups", 0), arguments.get("norm_weight"),
         arguments.get("norm_bias"), 1e-5, arguments.get("scale"), arguments.get("shift"), True, ""),
    )  # fmt: skip


def test_compiles_whole(backend):
    arguments = inputs((2, 16, 4, 5), 8)
    compiled = torch.compile(lambda **a: ops.conv3x3(**a, groups=4) * 2, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(**arguments), 2 * ops.conv3x3(**arguments, groups=4))


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4)])
def test_empty(backend, shape):
    assert ops.conv3x3(torch.zeros(shape), torch.zeros(8, 16, 3, 3)).shape == (shape[0], 8, *shape[2:])


def test_strides_are_never_an_error(backend):
    """Slices, chunks, a transposed image, an expanded residual."""
    arguments = inputs((4, 32, 6, 8), 16)
    right = ops.conv3x3(**arguments, groups=4)
    arguments["x"] = arguments["x"].repeat_interleave(2, 3)[..., ::2]
    arguments["residual"] = arguments["residual"].transpose(2, 3).contiguous().transpose(2, 3)
    arguments["scale"], arguments["shift"] = torch.cat([arguments["scale"], arguments["shift"]], 1).chunk(2, 1)
    arguments["add"] = arguments["add"].t().contiguous().t()
    y = ops.conv3x3(**arguments, groups=4)
    assert y.is_contiguous() and torch.allclose(y, right, atol=1e-5)


def test_requiring_a_gradient_through_the_norm_is_refused():
    x, weight = torch.zeros(1, 16, 4, 4), torch.nn.Parameter(torch.zeros(8, 16, 3, 3))
    with pytest.raises(RuntimeError, match="weight must not require grad: conv3x3 with groups has no gradient"):
        ops.conv3x3(x, weight, groups=4)
    with torch.no_grad():
        assert ops.conv3x3(x, weight, groups=4).shape == (1, 8, 4, 4)


@pytest.mark.parametrize("change, kind, message", [
    ({"x": torch.zeros(2, 16, 4)}, ValueError, r"x must have shape \[B, C, H, W\], got \[2, 16, 4\]"),
    ({"x": torch.zeros(2, 16, 4, 4, dtype=torch.uint8)}, ValueError, "x must be float32, .*, got torch.uint8"),
    ({"weight": torch.zeros(8, 16, 1, 1)}, ValueError, r"weight must have shape \[O, 16, 3, 3\], got \[8, 16, 1, 1\]"),
    ({"weight": torch.zeros(8, 12, 3, 3)}, ValueError, r"weight must have shape \[O, 16, 3, 3\], got \[8, 12, 3, 3\]"),
    ({"weight": torch.zeros(8, 16, 3, 3).half()}, ValueError, "weight must be float32 or x's torch.float32"),
    ({"bias": torch.zeros(7)}, ValueError, r"bias must have shape \[8\], got \[7\]"),
    ({"add": torch.zeros(2, 7)}, ValueError, r"add must have shape \[2, 8\], got \[2, 7\]"),
    ({"residual": torch.zeros(2, 8, 4, 5)}, ValueError, r"residual must have shape \[2, 8, 4, 4\]"),
    ({"residual": torch.zeros(2, 8, 4, 4).half()}, ValueError, "residual must be torch.float32, got torch.float16"),
    ({"groups": 3}, ValueError, "groups must be a positive int that divides C = 16, or None, got 3"),
    ({"groups": 4, "eps": -1.0}, ValueError, "eps must be finite and not negative, got -1.0"),
    ({"groups": 4, "scale": torch.zeros(2, 8)}, ValueError, r"scale must have shape \[2, 16\], got \[2, 8\]"),
    ({"norm_bias": torch.zeros(16)}, ValueError, "norm_bias must be None where groups is None, got a tensor"),
    ({"weight": None}, TypeError, "weight must be a tensor, got NoneType"),
])  # fmt: skip
def test_refusals(change, kind, message):
    arguments = {"x": torch.zeros(2, 16, 4, 4), "weight": torch.zeros(8, 16, 3, 3)}
    with pytest.raises(kind, match=message):
        ops.conv3x3(**{**arguments, **change})


def test_why_there_is_none_on_a_gpu():
    message = "has no convolution: on a GPU cuDNN's is used"
    for name in ("cuda", "triton"):
        with fastdiff.use_backend(name), pytest.raises(ValueError, match=message):
            ops.conv3x3(torch.zeros(1, 16, 4, 4), torch.zeros(8, 16, 3, 3))


