"""Offsets beyond 2^31 elements, on memory that is mapped and not there: only the last block of a launch runs."""

import mmap

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import native, reference, rng, rows
from tests.ops import test_group_norm_silu as norm
from tests.ops.accuracy import same_bits
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

MAP_NORESERVE = 0x4000  # Linux
LAST = 1024  # elements of a block of the kernels with a thread a quad


def sparse(shape, dtype, last=False):
    """Zeros that take no memory before they are written; last: [B, C, H, W] in channels_last."""
    count = torch.Size(shape).numel()
    try:
        memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"no address space for {count} elements: {error}")
    flat = torch.frombuffer(memory, dtype=dtype)
    B, C, *space = shape
    return flat.view(B, *space, C).movedim(-1, 1) if last else flat.view(shape)


@pytest.fixture
def last_block():
    with harness.installed(), harness.only_blocks(-1):
        yield


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_normal(last_block, last):
    """2^33 elements: 2^31 Philox blocks of one sample."""
    shape = (1, 4, 1 << 15, 1 << 16)
    out = sparse(shape, torch.bfloat16, last)
    native.normal(out, rng.make_rng(3, 4), torch.tensor([7]), rng.INITIAL)
    channels, pixels = (4, LAST // 4) if last else (1, LAST)
    result = out[0].flatten(1)[-channels:, -pixels:]
    for channel, values in zip(range(4 - channels, 4), result, strict=True):
        first = (channel * (1 << 31) + (1 << 31) - pixels) // 4
        words = reference.philox((torch.arange(first, first + pixels // 4), 7, 4, rng.INITIAL), (3, 0))
        pairs = [*reference.box_muller(*words[:2]), *reference.box_muller(*words[2:])]
        assert same_bits(values, torch.stack(pairs, dim=-1).flatten().float().bfloat16())
    assert not out[0, :, 0, 0].any() and not out[0, :, -2].any()


def test_normal_one_by_one(last_block):
    """6 * 2^30 elements of a sample, channels last, an odd number: the last three."""
    shape, key = (1, 3, (1 << 15) + 1, (1 << 16) + 1), rng.make_rng(3, 4)
    out = sparse(shape, torch.bfloat16, last=True)
    native.normal(out, key, torch.tensor([7]), rng.INITIAL)
    first = out.numel() // 4
    words = reference.philox((torch.tensor([first]), 7, 4, rng.INITIAL), (3, 0))
    pairs = [*reference.box_muller(*words[:2]), *reference.box_muller(*words[2:])]
    values = torch.stack(pairs, dim=-1).flatten().float().bfloat16()
    assert same_bits(out[0, -1, -1, -3:], values[:3])


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_q_sample(last_block, last):
    """The third sample of 2^31 elements each begins at 2^32; it is flipped."""
    C, W = 2, 1 << 15
    shape = (3, C, 1 << 15, W)
    x_start, x_t = sparse(shape, torch.uint8, last), sparse(shape, torch.bfloat16, last)
    pixels = LAST // C if last else LAST
    row = torch.randint(0, 256, (C, pixels), dtype=torch.uint8)
    x_start[-1, :, -1, :pixels] = row
    noise = sparse(shape, torch.float32, last)
    given = noise[-1, :, -1, -pixels:] = torch.randn(C, pixels)
    alpha, sigma = torch.rand(2, 10)
    t, flip = torch.tensor([0, 1, 7]), torch.tensor([False, False, True])
    native.q_sample(x_start, t, alpha, sigma, noise, None, None, flip, rng.TRAINING, x_t, None)
    expected = (row.float().flip(1) / 127.5 - 1) * alpha[7] + given * sigma[7]
    channels = slice(None) if last else slice(-1, None)
    assert torch.allclose(x_t[-1, channels, -1, -pixels:].float(), expected[channels], rtol=2**-8, atol=1e-6)
    assert not x_t[0, :, 0, :pixels].any() and not x_t[-1, :, -2].any()


def test_reverse_step(last_block):
    """History slot 2 begins at 2^32."""
    shape = (1, 1, 1 << 15, 1 << 16)
    x, out = sparse(shape, torch.bfloat16), sparse(shape, torch.bfloat16)
    history = sparse((3, *shape[1:]), torch.bfloat16).unsqueeze(1)
    here = (0, 0, -1, slice(-LAST, None))
    x[here], history[2][here] = torch.randn(2, LAST).bfloat16()
    table = torch.zeros(1, rows.WIDTH)
    for name, value in {"c_x": 0.5, "c_3": 0.25, "q_x": 2.0, "write": 2.0}.items():
        table[0, rows.COLUMNS[name]] = value
    expected, kept = 0.5 * x[here].float() + 0.25 * history[2][here].float(), 2 * x[here]
    with fastdiff.use_backend("cpu"):
        ops.reverse_step(x, None, table, torch.tensor(0), out=out, history=history)
    assert same_bits(out[here], expected.bfloat16()) and same_bits(history[2][here], kept)
    assert not history[0][here].any() and not out[0, 0, -1, : -2 * LAST].any()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_group_norm_silu_of_many_samples(last_block, last):
    """2^17 + 1 samples of 2^14 elements: of the last one, the last tile, which has the last channels."""
    shape, groups = ((1 << 17) + 1, 64, 16, 16), 32
    x, y, grad_y, grad_x = (sparse(shape, torch.bfloat16, last) for _ in range(4))
    x[-1], grad_y[-1] = torch.randn(2, *shape[1:]).bfloat16()
    mean, rstd = torch.empty(2, shape[0], groups)
    native.group_norm_silu(x, None, None, groups, 1e-5, None, None, None, True, y, mean, rstd)
    here = x[-1:].float().requires_grad_()
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(here, groups))
    assert torch.allclose(y[-1, -2:].float(), expected[0, -2:], rtol=2**-7, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected, here, grad_y[-1:].float())
    options = None, None, groups, None, None, None, True
    native.group_norm_silu_backward(grad_y, x, mean, rstd, *options, grad_x, *(None,) * 5)
    assert torch.allclose(grad_x[-1, -2:].float(), gradient[0, -2:], rtol=2**-7, atol=1e-4)
    assert not y[0].any() and not grad_x[0].any() and not y[-2].any() and not grad_x[-2].any()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_group_norm_silu_of_large_groups(last_block, last):
    """2^32 elements of a sample: the last chunk, all others having counted nothing."""
    shape, groups = (1, 4, 1 << 15, 1 << 15), 4
    x, y = sparse(shape, torch.bfloat16, last), sparse(shape, torch.bfloat16, last)
    x[:, :, -1] = torch.randn(1 << 15).bfloat16()
    statistics, workspace = torch.zeros(2, 1, groups), torch.zeros(native._C.group_norm_silu_workspace(x, groups))
    options = None, None, groups, 1e-5, None, None, None, False
    native._C.group_norm_silu(0, 0, 0, x, *options, y, *statistics, workspace)
    here = 0, -1, slice(-4, None)
    chunk = int((y[here] != 0).sum())
    values = x[here].flatten()[-chunk:].double()
    expected = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
    assert chunk > 1000 and torch.allclose(y[here].flatten()[-chunk:].double(), expected, rtol=2**-7, atol=1e-4)


CHUNK = 4096  # elements that a block sums


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_diffusion_loss(last_block, last):
    """The second sample of 2^32 elements, the network's of 2^33; its last chunk, and the gradient of its last block."""
    B, C, W = 2, 2, 1 << 16
    shape = (B, C, 1 << 15, W)
    output, x_start, grad = (sparse((B, n, 1 << 15, W), torch.bfloat16, last) for n in (2 * C, C, 2 * C))
    noise = sparse(shape, torch.bfloat16, last)
    pixels = CHUNK // C if last else CHUNK
    here = (-1, slice(None), -1, slice(-pixels, None))
    m = torch.randn(C, pixels).bfloat16()
    output[-1, :C, -1, -pixels:] = m
    x_start[here], noise[here] = torch.randn(2, C, pixels).bfloat16()
    t, (a, b) = torch.tensor([0, 7]), torch.rand(2, 10) + 0.1
    workspace = torch.zeros(native._C.loss_workspace(x_start))
    arguments = (output, x_start, t, a, b, noise, None, None, None, None, None, rng.TRAINING)
    native._C.diffusion_loss(0, 0, 0, *arguments, torch.zeros(B), workspace)
    d = m.float() - a[7] * x_start[here].float() - b[7] * noise[here].float()
    summed = d if last else d[-1]
    assert torch.allclose(workspace[-1 if not last else (1 << 32) * B // CHUNK - 1], summed.square().sum(), rtol=1e-4)
    scale = 2.0**40
    native.diffusion_loss_backward(torch.full((B,), scale), *arguments, grad)
    count = LAST // C if last else LAST
    expected = d[:, -count:] * 2 * scale / (1 << 32)
    channels = slice(0, C) if last else slice(C - 1, C)
    assert torch.allclose(grad[-1, channels, -1, -count:].float(), expected[channels], rtol=2**-7, atol=1e-3)
    assert not grad[0, :, 0, 0].any() and not grad[-1, :, -2].any() and not grad[-1, C:, -1, -count:].any()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_vlb_terms(last_block, last):
    """The same of the KL and of its gradient."""
    B, C, W = 2, 2, 1 << 16
    output, x_start, x_t, grad = (sparse((B, n, 1 << 15, W), torch.bfloat16, last) for n in (2 * C, C, C, 2 * C))
    pixels = CHUNK // C if last else CHUNK
    here = (-1, slice(None), -1, slice(-pixels, None))
    m, v = torch.randn(2, C, pixels).bfloat16()
    output[-1, :C, -1, -pixels:], output[-1, C:, -1, -pixels:] = m, v
    x_start[here], x_t[here] = torch.randn(2, C, pixels).bfloat16()
    table = torch.tensor([[0.5, 0.25, 1.0, 0, 0, 0.1, 0.5, 0.2]] * 10)
    t, workspace = torch.tensor([0, 7]), torch.zeros(native._C.loss_workspace(x_start))
    arguments = (output, x_start, x_t, t, table, None, None, None, float("inf"), False, False)
    native._C.vlb_terms(0, 0, 0, *arguments, torch.zeros(B), workspace)
    m, v = (each.double().requires_grad_() for each in (m, v))
    difference, l_p = x_start[here].double() - 0.5 * x_t[here].double() - 0.25 * m, 0.1 + 0.5 * v
    nats = 0.5 * (torch.exp(0.2 - l_p) - 1 - 0.2 + l_p + difference.square() * torch.exp(-l_p))
    summed = nats if last else nats[-1]
    assert torch.allclose(workspace[-1 if not last else (1 << 32) * B // CHUNK - 1].double(), summed.sum(), rtol=1e-4)
    scale = 2.0**40
    native.vlb_terms_backward(torch.full((B,), scale), *arguments, grad)
    by_m, by_v = torch.autograd.grad(nats.sum() * scale / 2**32 / torch.log(torch.tensor(2.0)), (m, v))
    count = LAST // C if last else LAST
    channels = slice(0, C) if last else slice(C - 1, C)
    for first, expected in ((0, by_m), (C, by_v)):
        found = grad[-1, first : first + C, -1, -count:][channels].double()
        assert torch.allclose(found, expected[channels, -count:], rtol=2**-7, atol=1e-2)
    assert not grad[0, :, 0, 0].any() and not grad[-1, :, -2].any()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_dropout_of_large_groups(last_block, last):
    """2^34 elements of a sample: past 2^32 Philox blocks would begin again. The last chunk's mask and residual."""
    shape, groups = (1, 4, 1 << 16, 1 << 16), 4
    x, y, residual = (sparse(shape, torch.bfloat16, last) for _ in range(3))
    x[:, :, -1, -2048:], residual[:, :, -1, -2048:] = torch.randn(2, 2048).bfloat16()
    statistics, workspace = torch.zeros(2, 1, groups), torch.zeros(native._C.group_norm_silu_workspace(x, groups))
    ids, factor = torch.tensor([7]), 4.0
    bias = torch.ones(4)
    native._C.group_norm_silu(0, 0, 0, x, torch.zeros(4), bias, groups, 1e-5, None, None, None, False, y, *statistics,
                              workspace, residual, rng.make_rng(3, 4), ids, 2**31, factor, 300)  # fmt: skip
    first = (4 << 32) - 1024
    words = reference.philox((torch.arange(first // 4, (4 << 32) // 4), 7, 4, 300), (3, 0))
    kept = torch.stack(words, dim=-1).flatten() >= 2**31
    here = 0, -1, -1, slice(-1024, None)
    expected = (kept * factor + residual[here].float()).bfloat16()
    assert same_bits(y[here], expected)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_dropout_of_many_samples(last_block, last):
    shape, groups = ((1 << 17) + 1, 64, 16, 16), 32
    x, grad_y, grad_x = (sparse(shape, torch.bfloat16, last) for _ in range(3))
    x[-1], grad_y[-1] = torch.randn(2, *shape[1:]).bfloat16()
    ids = torch.arange(shape[0])
    mean, rstd = torch.zeros(shape[0], groups), torch.ones(shape[0], groups)
    options = None, None, groups, None, None, None, False
    native.group_norm_silu_backward(grad_y, x, mean, rstd, *options, grad_x, *(None,) * 5, norm.KEY, ids, 2**31, 2.0,
                                    256 + norm.LAYER)  # fmt: skip
    dh = grad_y[-1:].double() * norm.kept((1, *shape[1:]), 0.5, ids[-1:]) * 2
    n = x[-1:].double()
    grouped = [value.reshape(groups, -1) for value in (dh, dh * n)]
    A, B = (value.mean(1).repeat_interleave(2)[:, None, None] for value in grouped)
    assert torch.allclose(grad_x[-1, -2:].double(), (dh - A - n * B)[0, -2:], rtol=2**-7, atol=1e-4)
    assert not grad_x[-2].any()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_rms_norm_silu(last_block, last):
    """2^32 elements: the last tile, of the last sample; and its share of the sums."""
    shape = (2, 64, 1 << 12, 1 << 13)
    x, y, grad_y, grad_x = (sparse(shape, torch.bfloat16, last) for _ in range(4))
    pixels = 64
    x[-1, :, -1, -pixels:], grad_y[-1, :, -1, -pixels:] = torch.randn(2, 64, pixels).bfloat16()
    here = -1, slice(None), -1, slice(-pixels, None)
    leaf = x[here].float().requires_grad_()
    expected = torch.nn.functional.silu(torch.nn.functional.normalize(leaf, dim=0) * 8)
    (gradient,) = torch.autograd.grad(expected, leaf, grad_y[here].float())
    native.rms_norm_silu(x, None, 0.0, 8e12, None, None, True, y)
    assert torch.allclose(y[here].float(), expected, rtol=2**-7, atol=1e-5)
    native.rms_norm_silu_backward(grad_y, x, None, 0.0, 8e12, None, None, True, grad_x, None, None, None)
    assert torch.allclose(grad_x[here].float(), gradient, rtol=2**-7, atol=1e-4)
    assert not y[-1, :, -1, : -4 * pixels].any() and not grad_x[-1, :, -2].any() and not y[0, :, -1].any()
