"""How the native module reads tensors: through DLPack's table, or through attributes where torch has none."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastdiff import ops
from fastdiff.ops import _check, native

pytestmark = pytest.mark.skipif(native._C is None, reason="needs the native module")
CPU = torch.device("cpu")


@pytest.fixture(params=["table", "attributes"])
def way(request):
    dtypes, table, *rest = native.TORCH
    if request.param == "table" and table is None:
        pytest.skip("this torch has no DLPack table")
    native._C.set_torch(dtypes, table if request.param == "table" else None, *rest)
    yield request.param
    native._C.set_torch(*native.TORCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtypes_layouts_and_strides_are_read_alike(way, dtype, memory_format):
    x = torch.randn(2, 6, 3, 5).to(dtype).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(2, 6, dtype=dtype)
    add = torch.randn(2, 13)[:, 1:7]
    with ops.use_backend("cpu"):
        found = ops.group_norm_silu(x, 3, weight, bias, add=add)
    with ops.use_backend("reference"):
        expected = ops.group_norm_silu(x, 3, weight, bias, add=add)
    assert found.stride() == x.stride()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    assert torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_bytes_and_flags_are_read_alike(way):
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    options = dict(t=torch.tensor([0, 1]), alpha=torch.tensor([0.9, 0.5]), sigma=torch.tensor([0.1, 0.6]))
    flip = torch.tensor([False, True])
    noise = torch.randn(2, 3, 4, 4)
    with ops.use_backend("cpu"):
        found = ops.q_sample(x, noise=noise, flip=flip, **options)
    with ops.use_backend("reference"):
        assert torch.allclose(found, ops.q_sample(x, noise=noise, flip=flip, **options), atol=1e-6)


def test_the_stride_of_one_sample_does_not_matter(way):
    x = torch.randn(4, 6, 3, 5)[::4]
    plain = torch.empty(1, 6, 3, 5).copy_(x)
    assert x.is_contiguous() and x.stride() != plain.stride()
    with ops.use_backend("cpu"):
        assert torch.equal(ops.group_norm_silu(x, 3), ops.group_norm_silu(plain, 3))


@pytest.mark.parametrize(
    "value, shape, dtype, device, answer",
    [
        (torch.zeros(2, 3), (2, 3), torch.float32, CPU, True),
        (torch.zeros(2, 3), torch.Size((2, 3)), torch.float32, CPU, True),
        (torch.nn.Parameter(torch.zeros(2, 3)), (2, 3), torch.float32, CPU, True),
        (torch.zeros((), dtype=torch.int64), (), torch.int64, CPU, True),
        (torch.zeros(2, dtype=torch.bool), (2,), torch.bool, CPU, True),
        (torch.zeros(2, dtype=torch.uint8), (2,), torch.bool, CPU, False),
        (torch.zeros(2, dtype=torch.bfloat16), (2,), torch.float16, CPU, False),
        (torch.zeros(2, 3), (3, 2), torch.float32, CPU, False),
        (torch.zeros(2, 3), (2,), torch.float32, CPU, False),
        (torch.zeros(2, 3), (2, 3, 1), torch.float32, CPU, False),
        (torch.zeros(2, 3), (2, 2**70), torch.float32, CPU, False),
        (torch.zeros(2, 3), (2, 3), torch.float32, torch.device("meta"), False),
        (torch.zeros(2, 3, device="meta"), (2, 3), torch.float32, CPU, False),
        (torch.zeros(2, 3, device="meta"), (2, 3), torch.float32, torch.device("meta"), True),
    ],
)
def test_conforms(way, value, shape, dtype, device, answer):
    assert _check.conforms(device, "value", value, shape, dtype) is answer
    assert _check.conforms(device, "other", torch.zeros(1, device=device), (1,), torch.float32,
                           "value", value, shape, dtype) is answer  # fmt: skip


@pytest.mark.gpu
def test_conforms_to_a_gpu(way):
    here, there = torch.zeros(2, 3), torch.zeros(2, 3, device="cuda")
    assert _check.conforms(there.device, "value", there, (2, 3), torch.float32)
    assert not _check.conforms(there.device, "value", here, (2, 3), torch.float32)
    assert not _check.conforms(CPU, "value", there, (2, 3), torch.float32)


def test_a_fake_tensor_is_asked_no_address(way, capfd):
    with FakeTensorMode():
        fake = torch.zeros(2, 3)
    assert _check.conforms(CPU, "fake", fake, (2, 3), torch.float32)
    assert "data pointer" not in capfd.readouterr().err


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_a_transformed_tensor_is_asked_no_address(monkeypatch, transform):
    def inside(x):
        _check.tensors(CPU, "x", x, (), torch.float32)
        with pytest.raises(ValueError, match=r"x must have shape \[4\], got \[\]"):
            _check.tensors(CPU, "x", x, (4,), torch.float32)
        return 2 * x

    monkeypatch.setattr(_check, "conforms", lambda *arguments: pytest.fail("torch is slow to say that there is none"))
    transform(inside)(torch.zeros(()) if transform is torch.func.grad else torch.zeros(3))


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="x must be a tensor, got int"):
        _check.tensors(CPU, "x", 3, (3,), torch.float32)


def test_an_unknown_dtype_is_named(way):
    with pytest.raises(TypeError, match=r"unknown dtype torch\.complex64"):
        native._C.normal(-1, 0, 1, torch.zeros(1, 1, 1, dtype=torch.complex64), None, None, 0)
