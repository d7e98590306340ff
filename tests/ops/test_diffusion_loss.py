"""`diffusion_loss` and its gradient on every backend, against float64 and float32 PyTorch with autograd."""

import pytest
import torch

from fastdiff import ops
from fastdiff.ops import rng
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import on_device
from tests.ops.losses import (
    DTYPES,
    SHAPES,
    T,
    at,
    clean,
    formats,
    gaussian,
    images,
    in_pytorch,
    process,
    with_gradient,
)

PREDICTIONS = ("eps", "x0", "v", "score", "xprev")


def targets(prediction, device, dtype=torch.float32):
    p = process(prediction)
    return p.target_x0.to(device, dtype), p.target_eps.to(device, dtype)


def counters(B, device):
    return dict(rng=rng.make_rng(1, 2, device), sample_ids=torch.arange(7, 7 + B, device=device))


def run(model_output, upstream, x_start, t, prediction, noise=None, **options):
    """[loss, gradient]."""
    tables = targets(prediction, model_output.device)
    return with_gradient(lambda m: ops.diffusion_loss(m, x_start, t, *tables, noise, **options), model_output, upstream)


def formula(x_start, t, noise, flip, prediction, weight=None, sample_weight=None):
    """What everybody writes, (model_output, dtype) -> loss [B]."""
    a, b = (table.cpu() for table in targets(prediction, "cpu"))

    def loss(m, dtype):
        x0 = clean(x_start, flip, dtype)
        target = at(a.to(dtype), t, x0) * x0 + at(b.to(dtype), t, x0) * noise.cpu().to(dtype)
        squares = (m[:, : x0.shape[1]] - target).square().flatten(1).mean(1)
        squares = squares if weight is None else squares * weight.cpu().to(dtype)[t.cpu()]
        return squares if sample_weight is None else squares * sample_weight.cpu().to(dtype)

    return loss


def check(shape, x_dtype, dtype, device, prediction="v", learned=False, weighted=False, x_format=None):
    B, C, *space = shape
    t = torch.tensor([0, T - 1, 500, 37][:B], device=device)
    flip = torch.tensor([True, False, True, False][:B], device=device)
    weights = {}
    if weighted:
        weight, sample_weight = process().snr.clamp(max=5).float(), gaussian(B, 9).float()
        weights = dict(weight=weight.to(device), sample_weight=sample_weight.to(device))
    output = gaussian((B, 2 * C if learned else C, *space), 1).to(device, dtype)
    x_start, upstream, drawn = images(shape, x_dtype, device), gaussian(B, 2).to(device), counters(B, device)
    noise = ops.normal(shape, *drawn.values(), stream=rng.TRAINING)
    exact, plain = in_pytorch(formula(x_start, t, noise, flip, prediction, **weights), output, upstream)
    for memory_format in formats(shape):
        x_start = x_start.contiguous(memory_format=x_format or memory_format)
        given = output.contiguous(memory_format=memory_format)
        options = dict(flip=flip, **weights)
        results = run(given, upstream, x_start, t, prediction, **drawn, **options)
        assert results[0].dtype is torch.float32 and results[1].dtype is dtype
        assert results[1].stride() == given.stride()
        for result, wide, narrow in zip(results, exact, plain, strict=True):
            assert_in_budget(result, wide, error_of(narrow, wide))
        assert not learned or not results[1][:, C:].any()
        again = run(given, upstream, x_start, t, prediction, noise, **options)
        assert all(same_bits(a, b) for a, b in zip(again, results, strict=True))


@pytest.mark.parametrize("x_dtype", [torch.uint8, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_of_every_dtype(backend, device, x_dtype, dtype):
    check(SHAPES["odd width, last block discards lanes"], x_dtype, dtype, device, learned=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_budget_of_every_shape(backend, device, shape):
    check(shape, torch.uint8, torch.float32, device, learned=True)
    check(shape, torch.float32, torch.bfloat16, device)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_budget_of_every_prediction(backend, device, prediction):
    check((4, 3, 4, 6), torch.uint8, torch.float32, device, prediction, weighted=True)


@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 5, 7), (2, 12, 4, 4)], ids=str)
def test_x_start_in_another_layout(backend, device, shape, x_format):
    check(shape, torch.uint8, torch.float32, device, learned=True, x_format=x_format)


def test_noise_is_that_of_q_sample(backend, device):
    shape, t = (3, 3, 5, 7), torch.tensor([5, 500, 999], device=device)
    x_start, drawn, p = images(shape, torch.uint8, device), counters(3, device), process()
    alpha, sigma = p.alpha.float().to(device), p.sigma.float().to(device)
    _, noise = ops.q_sample(x_start, t, alpha, sigma, return_noise=True, **drawn)
    loss = ops.diffusion_loss(noise, x_start, t, *targets("eps", device), **drawn)
    assert torch.equal(loss.cpu(), torch.zeros(3))
    other = ops.diffusion_loss(noise, x_start, t, *targets("eps", device), **drawn, stream=rng.STEP)
    assert (other > 1).all()


def test_a_coefficient_of_0_reads_nothing(backend, device):
    shape, t = (2, 3, 4, 4), torch.tensor([5, 500], device=device)
    nan, m = torch.full(shape, float("nan"), device=device), gaussian(shape, 1, torch.float32).to(device)
    zero, upstream = torch.zeros(shape, device=device), torch.ones(2, device=device)
    for prediction, x_start, noise in (("eps", nan, zero), ("x0", zero, nan)):
        value, gradient = run(m, upstream, x_start, t, prediction, noise)
        assert torch.allclose(value.cpu(), m.cpu().square().flatten(1).mean(1), rtol=1e-6)
        assert torch.allclose(gradient.cpu(), m.cpu() / 24, rtol=1e-6)


def test_float64_and_gradcheck(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    shape, t, tables = (2, 3, 3, 5), torch.tensor([5, 999]), targets("v", device, torch.float64)
    x_start, noise = images(shape, torch.uint8, device), gaussian(shape, 4)
    for output in (gaussian(shape, 1), gaussian((2, 6, 3, 5), 1).contiguous(memory_format=torch.channels_last)):
        value = ops.diffusion_loss(output, x_start, t, *tables, noise)
        p, x0 = process("v"), clean(x_start, None, torch.float64)
        target = at(p.target_x0, t, x0) * x0 + at(p.target_eps, t, x0) * noise
        assert_in_budget(value, (output[:, :3] - target).square().flatten(1).mean(1), 0.0)
        leaf = output.clone(memory_format=torch.preserve_format).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: ops.diffusion_loss(m, x_start, t, *tables, noise), (leaf,))


def test_any_strides(backend, device):
    x_start = images((4, 6, 8, 10), torch.float32, device)[::2, ::2, :, ::2]
    output = gaussian((4, 6, 8, 10), 1, torch.float32).to(device)[::2, ::2, :, ::2]
    wide = torch.tensor([3, 0, 4], device=device)[::2]
    weights = dict(weight=torch.rand(2 * T, device=device)[::2], sample_weight=torch.rand(4, device=device)[::2])
    upstream = torch.ones(2, device=device)
    drawn = counters(2, device)
    apart = ops.diffusion_loss(
        output.contiguous(), x_start.contiguous(), wide.contiguous(), *targets("v", device), **drawn,
        **{name: value.contiguous() for name, value in weights.items()},
    )  # fmt: skip
    value, gradient = with_gradient(
        lambda m: ops.diffusion_loss(m[::2, ::2, :, ::2], x_start, wide, *targets("v", device), **drawn, **weights),
        gaussian((4, 6, 8, 10), 1, torch.float32).to(device), upstream,
    )  # fmt: skip
    assert same_bits(value, apart) and not gradient[1::2].any() and gradient[::2, ::2, :, ::2].all()
    transposed = output.transpose(2, 3).contiguous().transpose(2, 3)
    _, permuted = run(transposed, upstream, x_start, wide, "v", **drawn, **weights)
    assert permuted.stride() == transposed.stride()
    assert same_bits(permuted.contiguous(), gradient[::2, ::2, :, ::2].contiguous())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (4, 3, 8, 8)], ids=str)
def test_bits_do_not_depend_on_batch_position_or_threads(backend, device, shape, memory_format):
    t, drawn = torch.tensor([9, 99, 999, 0], device=device), counters(4, device)
    x_start, upstream = images(shape, torch.uint8, device), torch.ones(4, device=device)
    output = gaussian(shape, 1, torch.float32).to(device).contiguous(memory_format=memory_format)

    def of(part):
        options = dict(rng=drawn["rng"], sample_ids=drawn["sample_ids"][part])
        return run(output[part], upstream[part], x_start[part], t[part], "v", **options)

    together = of(slice(None))
    for b in range(4):
        one = slice(b, b + 1)
        assert all(same_bits(a, c[one]) for a, c in zip(of(one), together, strict=True))


def test_bits_do_not_depend_on_threads(backend, device):
    if not backend.startswith("cpu"):
        pytest.skip("threads are the CPU's")
    shape, t, before = (2, 3, 131, 133), torch.tensor([9, 99]), torch.get_num_threads()
    x_start, output = images(shape, torch.uint8, device), gaussian(shape, 1, torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(output, torch.ones(2), x_start, t, "v", **counters(2, device)))
    torch.set_num_threads(before)
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [-1, T])
def test_t_out_of_range(backend, device, bad):
    shape, t = (3, 1, 4, 4), torch.tensor([0, bad, 5], device=device)
    x_start, output, drawn = images(shape, torch.float32, device), torch.ones(shape, device=device), counters(3, device)
    if on_device(backend):
        drawn["weight"] = torch.ones(T, device=device)
        for result in run(output, torch.ones(3, device=device), x_start, t, "v", **drawn):
            assert result[1].isnan().all() and result[[0, 2]].isfinite().all()
    else:
        with pytest.raises(IndexError, match=rf"t must be in \[0, 1000\), got {bad} at position 1"):
            ops.diffusion_loss(output, x_start, t, *targets("v", device), **drawn)


def test_empty_batches_and_samples(backend, device):
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        x_start, none = images(shape, torch.float32, device), torch.zeros(shape[0], dtype=torch.int64, device=device)
        drawn, upstream = counters(shape[0], device), torch.zeros(shape[0], device=device)
        output = torch.zeros(shape, device=device)
        value, gradient = run(output, upstream, x_start, none, "v", **drawn)
        assert value.shape == shape[:1] and gradient.shape == shape and value.isnan().all()


def test_loss_of_the_process(backend, device):
    shape, t = (3, 3, 4, 4), torch.tensor([5, 500, 999], device=device)
    x_start, output, drawn = images(shape, torch.uint8, device), gaussian(shape, 1, torch.bfloat16), counters(3, device)
    for prediction in PREDICTIONS:
        result = process(prediction).loss(output.to(device), x_start, t, **drawn)
        expected = ops.diffusion_loss(output.to(device), x_start, t, *targets(prediction, device), **drawn)
        assert same_bits(result, expected)


GOOD = dict(model_output=torch.zeros(2, 3, 4, 4), x_start=torch.zeros(2, 3, 4, 4), t=torch.zeros(2, dtype=torch.int64),
            target_x0=torch.zeros(T), target_eps=torch.ones(T), rng=rng.make_rng(0),
            sample_ids=torch.arange(2))  # fmt: skip
BAD = [
    (dict(model_output=[1.0]), TypeError, "model_output must be a tensor"),
    (dict(model_output=torch.zeros(2, 4, 4, 4)), ValueError, r"model_output must have shape \[B, C or 2C, \*\]"),
    (dict(model_output=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), ValueError, "model_output must be float32"),
    (dict(x_start=[1.0]), TypeError, "x_start must be a tensor"),
    (dict(x_start=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), ValueError, "x_start must be float32"),
    (dict(t=torch.zeros(2)), ValueError, "t must be torch.int64, got torch.float32"),
    (dict(t=torch.zeros(3, dtype=torch.int64)), ValueError, r"t must have shape \[2\], got \[3\]"),
    (dict(target_x0=1.0), TypeError, "target_x0 must be a tensor"),
    (dict(target_x0=torch.zeros(T).double()), ValueError, "target_x0 must be torch.float32, got torch.float64"),
    (dict(target_eps=torch.zeros(5)), ValueError, r"target_eps must have shape \[1000\], got \[5\]"),
    (dict(weight=torch.zeros(2)), ValueError, r"weight must have shape \[1000\], got \[2\]"),
    (dict(sample_weight=torch.zeros(3)), ValueError, r"sample_weight must have shape \[2\], got \[3\]"),
    (dict(noise=torch.zeros(2, 3, 4, 4)), ValueError, "rng and sample_ids must be None where noise is given"),
    (dict(noise=torch.zeros(2, 3, 4, 5), rng=None, sample_ids=None), ValueError, "noise must have shape"),
    (dict(rng=None), ValueError, "noise must be a tensor where rng or sample_ids is not given"),
    (dict(flip=torch.zeros(2)), ValueError, "flip must be torch.bool"),
    (dict(stream=2**32), ValueError, "stream must be in"),
    (dict(x_start=torch.zeros(2, 3, 4, 4, requires_grad=True)), RuntimeError, "x_start must not require grad"),
    (dict(weight=torch.zeros(T, requires_grad=True)), RuntimeError, "weight must not require grad"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.diffusion_loss(**{**GOOD, **change})
