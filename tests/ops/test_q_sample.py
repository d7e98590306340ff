"""`q_sample` and `q_step` on every backend."""

import pytest
import torch

from fastdiff import ops
from fastdiff.ops import rng
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import on_device

T = 1000
BETAS = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
ALPHA = (1 - BETAS).cumprod(0).sqrt()
SIGMA = (1 - (1 - BETAS).cumprod(0)).sqrt()

SHAPES = {
    "even": (4, 4, 8, 8),
    "odd width, last block discards lanes": (3, 3, 5, 7),
    "one channel": (2, 1, 6, 10),
    "one element": (1, 1, 1, 1),
    "longer than a tile": (2, 3, 33, 37),
    "no space": (3, 5),
    "sequence": (2, 3, 9),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tables(device, dtype=torch.float32):
    return ALPHA.to(device, dtype), SIGMA.to(device, dtype)


def source(shape, dtype, device, last=False):
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.uint8:
        x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        x = (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)
    return x.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


def exact_and_eager(x_start, t, noise, flip):
    """The float64 result, and what ordinary PyTorch gives in float32."""

    def compute(dtype):
        x0 = x_start.cpu().to(dtype)
        x0 = x0 / 127.5 - 1 if x_start.dtype is torch.uint8 else x0
        if flip is not None and x0.dim() > 2:
            x0 = torch.where(flip.cpu().reshape(-1, *(1,) * (x0.dim() - 1)), x0.flip(-1), x0)
        a, s = (table.float().to(dtype)[t.cpu()].reshape(-1, *(1,) * (x0.dim() - 1)) for table in (ALPHA, SIGMA))
        return a * x0 + s * noise.cpu().to(dtype)

    return compute(torch.float64), compute(torch.float32)


@pytest.mark.parametrize("x_dtype", [torch.uint8, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_of_every_dtype(backend, device, x_dtype, dtype):
    check(SHAPES["odd width, last block discards lanes"], x_dtype, dtype, device)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_budget_of_every_shape(backend, device, shape):
    check(shape, torch.uint8, torch.float32, device)
    check(shape, torch.float32, torch.bfloat16, device)


def check(shape, x_dtype, dtype, device):
    B = shape[0]
    t = torch.tensor([0, T - 1, 500, 37][:B], device=device)
    flip = torch.tensor([True, False, True, False][:B], device=device)
    key, ids = rng.make_rng(1, 2, device), torch.arange(7, 7 + B, device=device)
    lasts = (False, True) if len(shape) == 4 else (False,)
    for x_last in lasts:
        x_start = source(shape, x_dtype, device, x_last)
        for last in lasts:
            memory_format = torch.channels_last if last else torch.contiguous_format
            x_t, noise = ops.q_sample(x_start, t, *tables(device), rng=key, sample_ids=ids, flip=flip, dtype=dtype,
                                      memory_format=memory_format, return_noise=True)  # fmt: skip
            assert same_bits(noise, ops.normal(shape, key, ids, stream=rng.TRAINING))
            assert x_t.dtype is dtype and x_t.is_contiguous(memory_format=memory_format)
            exact, eager = exact_and_eager(x_start, t, noise, flip)
            assert_in_budget(x_t, exact, error_of(eager, exact))
            options = dict(flip=flip, dtype=dtype, memory_format=memory_format)
            given = ops.q_sample(x_start, t, *tables(device), noise, **options)
            assert same_bits(given, x_t)


def test_float64(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    x_start, t = source((3, 3, 5, 7), torch.float64, device), torch.tensor([0, 999, 3])
    noise = torch.randn(x_start.shape, dtype=torch.float64)
    x_t, used = ops.q_sample(x_start, t, ALPHA, SIGMA, noise, return_noise=True)
    exact = ALPHA[t].view(-1, 1, 1, 1) * x_start + SIGMA[t].view(-1, 1, 1, 1) * noise
    assert_in_budget(x_t, exact, 0.0)
    assert same_bits(used, noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigma_is_positive_at_every_timestep_whatever_the_dtype(backend, device, dtype):
    """In bfloat16 tables alphas_cumprod[0] rounds to 1 and sigma[0] to 0: the first step would have no noise."""
    t = torch.arange(0, T, 37, device=device)
    x_start = torch.zeros((len(t), 1, 1, 1), dtype=dtype, device=device)
    x_t = ops.q_sample(x_start, t, *tables(device), torch.ones_like(x_start))
    assert (x_t > 0).all()
    assert torch.allclose(x_t.flatten().cpu().double(), SIGMA[t.cpu()], rtol=0.005)


def test_uint8_ends_are_minus_one_and_one(backend, device):
    x_start = torch.tensor([[0, 255]], dtype=torch.uint8, device=device)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    t, noise = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros((1, 2), device=device)
    x_t = ops.q_sample(x_start, t, one, zero, noise)
    assert torch.allclose(x_t.cpu(), torch.tensor([[-1.0, 1.0]]), rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_flip_mirrors_the_image_and_not_the_noise(backend, device, last):
    x_start, t = source((2, 3, 4, 5), torch.float32, device, last), torch.zeros(2, dtype=torch.int64, device=device)
    noise, one = torch.randn(x_start.shape, device=device), torch.ones(1, device=device)
    flip = torch.tensor([False, True], device=device)
    x_t = ops.q_sample(x_start, t, one, one, noise, flip=flip)
    assert torch.equal(x_t[0], x_start[0] + noise[0])
    assert torch.equal(x_t[1], x_start[1].flip(-1) + noise[1])


def test_any_strides(backend, device):
    x_start = source((4, 6, 8, 10), torch.float32, device)[::2, ::2, :, ::2]
    t = torch.tensor([3, 4], device=device)
    key, ids = rng.make_rng(1, device=device), torch.arange(2, device=device)
    expected = ops.q_sample(x_start.contiguous(), t, *tables(device), rng=key, sample_ids=ids)
    t = torch.tensor([3, 0, 4], device=device)[::2]
    strided = ops.q_sample(x_start, t, *tables(device), rng=key, sample_ids=ids)
    assert same_bits(strided, expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 5, 7)], ids=str)
def test_noise_in_another_layout(backend, device, shape):
    x_start, noise, t = source(shape, torch.float32, device), torch.randn(shape).to(device), torch.tensor([3, 4])
    expected = ops.q_sample(x_start, t.to(device), *tables(device), noise)
    other = noise.contiguous(memory_format=torch.channels_last)
    assert same_bits(ops.q_sample(x_start, t.to(device), *tables(device), other), expected)


def test_bits_do_not_depend_on_batch_or_position(backend, device):
    x_start, t = source((4, 3, 5, 7), torch.uint8, device), torch.tensor([9, 99, 999, 0], device=device)
    key, ids = rng.make_rng(1, 2, device), torch.arange(4, device=device)
    flip = torch.tensor([True, True, False, False], device=device)
    together = ops.q_sample(x_start, t, *tables(device), rng=key, sample_ids=ids, flip=flip)
    for b in range(4):
        one = slice(b, b + 1)
        alone = ops.q_sample(x_start[one], t[one], *tables(device), rng=key, sample_ids=ids[one], flip=flip[one])
        assert same_bits(alone, together[one])


def test_steps_compose_to_q_sample(backend, device):
    x_start = source((2, 3, 4, 4), torch.float32, device)
    x, variance = x_start, 0.0
    alpha, sigma = (1 - BETAS).sqrt().float().to(device), BETAS.sqrt().float().to(device)
    zero = torch.zeros_like(x_start)
    for step in range(5):
        t = torch.full((2,), step, device=device)
        x = ops.q_step(x, t, alpha, sigma, zero)
        variance = variance * float(1 - BETAS[step]) + float(BETAS[step])
    assert torch.allclose(x.cpu(), (ALPHA[4] * x_start.cpu().double()).float(), rtol=1e-6)
    assert variance == pytest.approx(float(SIGMA[4] ** 2), rel=1e-12)


@pytest.mark.parametrize("bad", [-1, T])
def test_t_out_of_range(backend, device, bad):
    x_start = source((3, 1, 4, 4), torch.float32, device)
    t = torch.tensor([0, bad, 5], device=device)
    key, ids = rng.make_rng(1, device=device), torch.arange(3, device=device)
    if on_device(backend):
        x_t = ops.q_sample(x_start, t, *tables(device), rng=key, sample_ids=ids)
        assert x_t[1].isnan().all() and x_t[[0, 2]].isfinite().all()
    else:
        with pytest.raises(IndexError, match=rf"t must be in \[0, 1000\), got {bad} at position 1"):
            ops.q_sample(x_start, t, *tables(device), rng=key, sample_ids=ids)


def test_empty_batches(backend, device):
    x_start, none = source((0, 3, 4, 4), torch.uint8, device), torch.zeros(0, dtype=torch.int64, device=device)
    key = rng.make_rng(0, device=device)
    assert ops.q_sample(x_start, none, *tables(device), rng=key, sample_ids=none).shape == (0, 3, 4, 4)


GOOD = dict(x_start=torch.zeros(2, 3, 4, 4), t=torch.zeros(2, dtype=torch.int64), alpha=ALPHA.float(),
            sigma=SIGMA.float(), rng=rng.make_rng(0), sample_ids=torch.arange(2))  # fmt: skip
BAD = [
    (dict(x_start=[1.0]), TypeError, "x_start must be a tensor"),
    (dict(x_start=torch.zeros(2, 3, dtype=torch.int32)), ValueError, "x_start must be float32"),
    (dict(x_start=torch.zeros(2)), ValueError, "x_start must have shape"),
    (dict(t=torch.zeros(2)), ValueError, "t must be torch.int64, got torch.float32"),
    (dict(t=torch.zeros(3, dtype=torch.int64)), ValueError, r"t must have shape \[2\], got \[3\]"),
    (dict(alpha=ALPHA), ValueError, "alpha must be torch.float32, got torch.float64"),
    (dict(sigma=SIGMA.float()[:5]), ValueError, r"sigma must have shape \[1000\], got \[5\]"),
    (dict(noise=torch.zeros(2, 3, 4, 4)), ValueError, "rng and sample_ids must be None where noise is given"),
    (dict(noise=torch.zeros(2, 3, 4, 5), rng=None, sample_ids=None), ValueError, "noise must have shape"),
    (dict(noise=torch.zeros(2, 3, 4, 4, dtype=torch.int64), rng=None, sample_ids=None), ValueError,
     "noise must be float32"),
    (dict(rng=None), ValueError, "noise must be a tensor where rng or sample_ids is not given"),
    (dict(flip=torch.zeros(2)), ValueError, "flip must be torch.bool"),
    (dict(dtype=torch.int8), ValueError, "dtype must be float32"),
    (dict(memory_format="channels_last"), ValueError, "memory_format must be torch.contiguous_format, .*, got 'chan"),
    (dict(stream=2**32), ValueError, "stream must be in"),
    (dict(x_start=torch.zeros(2, 3, 4, 4, requires_grad=True)), RuntimeError, "x_start must not require grad"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.q_sample(**{**GOOD, **change})
