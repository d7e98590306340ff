"""`normal` on every backend."""

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import native, reference, rng
from tests.ops.accuracy import same_bits, ulp
from tests.ops.conftest import LEVELS, on_device

SHAPES = {
    "whole blocks": (2, 4, 8, 8),
    "last block discards lanes": (3, 3, 5, 7),
    "smaller than a block": (2, 1, 1, 3),
    "one element": (1, 1, 1, 1),
    "no space": (2, 6),
    "sequence": (2, 5, 9),
    "volume": (1, 2, 3, 4, 5),
    "longer than a tile": (1, 3, 40, 33),
}
COUNTERS = [(0, 0, rng.INITIAL), (2**63 + 5, 2**32 - 1, 2**32 - 1), (-1, 77, rng.STEP)]


def definition(shape, key, ids, stream):
    """The float64 normals before their rounding."""
    count = int(np.prod(shape[1:]))
    a, b, c, d = reference.words(count, key.cpu(), ids.cpu(), stream)
    n = torch.stack([*reference.box_muller(a, b), *reference.box_muller(c, d)], dim=-1)
    return n.flatten(1)[:, :count].reshape(shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("seed", "draw", "stream"), COUNTERS)
def test_within_four_ulp_of_the_definition(backend, device, shape, seed, draw, stream):
    key = rng.make_rng(seed, draw, device)
    ids = torch.tensor([0, 2**32 - 1, 12345][: shape[0]], device=device)
    for memory_format in [torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])]:
        n = ops.normal(shape, key, ids, stream=stream, memory_format=memory_format)
        exact = definition(shape, key, ids, stream)
        assert ((n.cpu().double() - exact).abs() <= 4 * ulp(exact, torch.float32)).all()
        assert n.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_the_float32_normals_rounded_or_widened(backend, device, dtype):
    if dtype is torch.float64 and on_device(backend):
        pytest.skip(f"{backend} has no float64")
    key, ids = rng.make_rng(9, 1, device), torch.arange(3, device=device)
    expected = ops.normal((3, 3, 9, 5), key, ids)
    assert same_bits(ops.normal((3, 3, 9, 5), key, ids, dtype=dtype), expected.to(dtype))


def test_bits_do_not_depend_on_batch_or_position(backend, device):
    key, ids = rng.make_rng(3, 4, device), torch.arange(40, 45, device=device)
    together = ops.normal((5, 3, 6, 7), key, ids)
    for b in range(5):
        assert same_bits(ops.normal((1, 3, 6, 7), key, ids[b : b + 1]), together[b : b + 1])
    assert same_bits(ops.normal((5, 3, 6, 7), key, ids.flip(0)), together.flip(0))


@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_threads_or_alignment(level):
    from tests.ops.conftest import running_on

    with running_on(f"cpu-{level}"):
        key, ids = rng.make_rng(3), torch.arange(4)
        threads = torch.get_num_threads()
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.normal((4, 3, 33, 31), key, ids))
        torch.set_num_threads(threads)
        assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
        for offset in (1, 2, 3):
            out = torch.empty(4 * 3 * 33 * 31 + offset)[offset:].view(4, 3, 33, 31)
            native.normal(out, key, ids, rng.INITIAL)
            assert same_bits(out, results[0])


def test_ten_million_draws_are_standard_normal():
    stats = pytest.importorskip("scipy.stats")
    with fastdiff.use_backend("reference" if native.unavailable() else "cpu"):
        n = ops.normal((10, 1000, 1000), rng.make_rng(2024), torch.arange(10)).flatten().double()
    size = n.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((n**power).mean()) - moment) < 5 * (variance / size) ** 0.5
    assert stats.kstest(n.numpy(), "norm").pvalue > 1e-3
    neighbours = (n[:-1] * n[1:]).mean()
    assert abs(float(neighbours)) < 5 / size**0.5
    assert 0 < int((n.abs() > 5).sum()) == pytest.approx(5.7e-7 * size, abs=5 * 5.7**0.5)


def test_different_seeds_draws_ids_and_streams_differ(backend, device):
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    shape, key = (1, 1, 4, 4), rng.make_rng(1, 2, device)
    base = ops.normal(shape, key, ids)
    others = [
        ops.normal(shape, rng.make_rng(2, 2, device), ids),
        ops.normal(shape, rng.make_rng(1 + 2**32, 2, device), ids),
        ops.normal(shape, rng.make_rng(1, 3, device), ids),
        ops.normal(shape, key, ids + 1),
        ops.normal(shape, key, ids, stream=rng.STEP),
    ]
    for other in others:
        assert not torch.isclose(base, other).any()


def test_empty_batches(backend, device):
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    assert ops.normal((0, 3, 4, 4), rng.make_rng(0, device=device), ids).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (2, 3, 0, 4)], ids=str)
def test_samples_of_no_elements(backend, device, shape):
    key, ids = rng.make_rng(1, device=device), torch.arange(2, device=device)
    assert ops.normal(shape, key, ids).shape == shape


BAD = [
    (dict(shape=(2,)), ValueError, "shape must be"),
    (dict(shape=(2, -1)), ValueError, "shape must be"),
    (dict(rng=torch.zeros(3, dtype=torch.int64)), ValueError, "rng must have shape"),
    (dict(rng=torch.zeros(2)), ValueError, "rng must be torch.int64"),
    (dict(rng=7), TypeError, "rng must be a tensor, got int"),
    (dict(sample_ids=torch.zeros(3, dtype=torch.int64)), ValueError, r"sample_ids must have shape \[2\], got \[3\]"),
    (dict(sample_ids=torch.zeros(2, dtype=torch.int32)), ValueError, "sample_ids must be torch.int64, got torch.int32"),
    (dict(sample_ids=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError,
     "sample_ids must be on cpu, got meta"),
    (dict(stream=-1), ValueError, "stream must be in"),
    (dict(dtype=torch.int32), ValueError, "dtype must be float32"),
    (dict(memory_format="channels_last"), ValueError, "memory_format must be torch.contiguous_format, .*, got 'chan"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    good = dict(shape=(2, 3, 4, 4), rng=rng.make_rng(0), sample_ids=torch.arange(2))
    with pytest.raises(error, match=message):
        ops.normal(**{**good, **change})
