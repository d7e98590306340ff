"""Threads and tiles past the end, where results alone do not show what they do."""

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import native, rng
from tests.ops import test_group_norm_silu as norm
from tests.ops import test_reverse_step as step
from tests.ops import test_rms_norm_silu as rms
from tests.ops.accuracy import same_bits
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)


@pytest.fixture(autouse=True)
def on_cuda_sources():
    with harness.installed(), fastdiff.use_backend("cpu"):
        yield


def test_threads_past_the_samples_end_write_nothing():
    """36 quads of a sample: 28 threads of its second warp have none."""
    with harness.counted() as launches:
        ops.normal((2, 3, 4, 12), rng.make_rng(1), torch.arange(2))
    (launch,) = launches
    assert 32 * launch["tensors"]["out"]["written_sectors"] == 2 * 3 * 4 * 12 * 4


@pytest.mark.parametrize("shape", [(2, 3, 13, 20), (1, 5, 8, 33), (2, 3, 44, 44)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_past_the_samples_end_draw_for_others(shape, dtype):
    """Channels last: 3 quads in a last tile of 192, a few in one of 5 channels; the noise is that of channels first."""
    rows, key, ids = step.table(step.ROWS["no network, only noise"]), rng.make_rng(1), torch.arange(shape[0])
    x, row = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), torch.tensor(0)
    last = x.contiguous(memory_format=torch.channels_last)
    expected, y = (ops.reverse_step(each, None, rows, row, rng=key, sample_ids=ids) for each in (x, last))
    assert same_bits(y, expected) and y.stride() == last.stride()


def test_a_short_last_tile_after_full_ones():
    """Five tiles of 8192 positions but for four; and 12 groups, 8 to a tile."""
    norm.check(norm.inputs((1, 1, 4, 10239), torch.float32, "cpu"), 1)
    norm.check(norm.inputs((1, 48, 8, 8), torch.float32, "cpu"), 12, torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_tensors_that_no_vector_reaches(memory_format):
    """An element's alignment is enough, and gives the same bits."""
    shape, key, ids = (2, 3, 4, 4), rng.make_rng(1), torch.arange(2)
    out = torch.empty(2 * 48 + 1)[1:].view(shape)
    if memory_format is torch.channels_last:
        out = out.view(2, 4, 4, 3).movedim(-1, 1)
    rows = step.table(step.ROWS["no network, only noise"])
    x, row = ops.normal(shape, key, ids, memory_format=memory_format), torch.tensor(0)
    native.normal(out, key, ids, rng.INITIAL)
    assert same_bits(out, x)
    ops.reverse_step(out, None, rows, row, out=out, rng=key, sample_ids=ids)
    assert same_bits(out, ops.reverse_step(x, None, rows, row, rng=key, sample_ids=ids))
    x_t, noise_out = out.clone(memory_format=torch.preserve_format), out
    t, alpha = torch.tensor([0, 1]), torch.tensor([0.9, 0.4])
    native.q_sample(x, t, alpha, 1 - alpha, None, key, ids, None, rng.INITIAL, x_t, noise_out)
    assert same_bits(noise_out, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_that_no_vector_reaches(dtype):
    x, out = torch.randn(2 * 8 * 16).to(dtype), torch.empty(2 * 8 * 16 + 1, dtype=dtype)
    out[1:] = x
    apart, here = x.view(2, 8, 4, 4).requires_grad_(), out[1:].view(2, 8, 4, 4).requires_grad_()

    def dropped(x):
        return norm.fused(0.3, x=x, groups=2, residual=x.detach())

    for op in (lambda x: ops.group_norm_silu(x, 2), dropped, ops.rms_norm_silu):
        apart.grad = here.grad = None
        expected, y = (op(each) for each in (apart, here))
        expected.backward(apart.detach())
        y.backward(here.detach())
        assert same_bits(y, expected) and same_bits(here.grad, apart.grad)
    alone = [norm.fused(x=apart, groups=2, residual=residual.detach()) for residual in (apart, here)]
    assert same_bits(*alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
def test_full_pages_that_no_vector_reaches(dtype, silu):
    """Of rms_norm_silu, channels last: where vectors reach them a kernel of their own is as exact to the bit."""
    shape = (2, 64, 16, 16)
    arguments = rms.inputs(shape, dtype, "cpu")
    arguments["x"] = arguments["x"].contiguous(memory_format=torch.channels_last)
    grad_y = rms.upstream(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    def run(x, grad_y):
        return rms.with_gradients(lambda **a: ops.rms_norm_silu(**a, silu=silu), arguments | {"x": x}, grad_y)

    x = arguments["x"]
    expected = run(x, grad_y)
    for given in ((apart(x), grad_y), (x, apart(grad_y))):
        assert all(same_bits(a, b) for a, b in zip(run(*given), expected, strict=True))
    short = [each[..., :15].contiguous(memory_format=torch.channels_last) for each in (x, grad_y)]  # no tile is full
    for of_short, of_full in zip(run(*short)[:2], expected[:2], strict=True):
        assert same_bits(of_short, of_full[..., :15])


def apart(tensor, elements=1):
    """The same numbers so many elements on, in the same layout."""
    room = torch.empty(tensor.numel() + elements, dtype=tensor.dtype)
    return room.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)


def a_quad_apart(tensor):
    """Where quads of 16 bits can be reached, and the 16 bytes of a pair's vectors cannot."""
    return apart(tensor, 4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 16], ids=["tiles", "no tiles"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_losses_of_tensors_that_no_vector_reaches(memory_format, dtype, channels, learned):
    """Sums too are the same to the bit."""
    shape, t = (2, channels, 12, 12), torch.tensor([0, 7])
    wide = torch.randn(2, channels * (1 + learned), 12, 12)
    images = torch.randn(shape), torch.randn(shape).to(dtype), wide.to(dtype)
    x_start, x_t, output = (each.contiguous(memory_format=memory_format) for each in images)
    table, target = torch.rand(10, 8) * torch.tensor([1, 1, 1, 1, 0, 1, learned, 1]), torch.rand(2, 10)

    def run(x_start, x_t, output, move):
        results = []
        for pass_, arguments in {
            "diffusion_loss": (x_start, t, *target, x_t, None, None, None, None, None, 3),
            "vlb_terms": (x_start, x_t, t, table, None, None, None, 3.0, True, False),
        }.items():
            out, grad = torch.empty(2), move(torch.zeros_like(output))
            getattr(native, pass_)(output, *arguments, out)
            getattr(native, f"{pass_}_backward")(torch.ones(2), output, *arguments, grad)
            results += [out, grad]
        return results

    plain = run(x_start, x_t, output, lambda each: each)
    for moved in (
        run(*map(apart, (x_start, x_t, output)), apart),
        run(apart(x_start), x_t, output, torch.clone),
        run(x_start, x_t, output, apart),
        run(x_start, x_t, a_quad_apart(output), a_quad_apart),
    ):
        assert all(same_bits(a, b) for a, b in zip(plain, moved, strict=True))


def test_more_chunks_than_the_threads_that_add_them_up():
    """Only the first chunk is computed; what the others found stands in the workspace."""
    shape = (1, 1, 1024, 2048)
    zero, t, table = torch.zeros(shape), torch.tensor([1]), torch.ones(2)
    workspace, loss = torch.rand(native._C.loss_workspace(zero)), torch.empty(1)
    others = workspace[1:].double().sum()
    arguments = torch.ones(shape), zero, t, table, table, zero, *(None,) * 5, rng.TRAINING
    with harness.only_blocks(0):
        native._C.diffusion_loss(0, 0, 0, *arguments, loss, workspace)
    assert len(workspace) == 512 and workspace[0] == 4096
    assert torch.allclose(loss.double(), (others + 4096) / zero.numel(), rtol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(2, 3, 30, 30), (2, 5, 6, 54), (2, 3, 2, 600)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_mirrored_lines_that_begin_in_a_vector(memory_format, shape, dtype):
    """Lines that are no whole tiles, or longer than one."""
    x = (100 * torch.rand(shape)).to(dtype)
    options = dict(rng=rng.make_rng(1), sample_ids=torch.arange(2), dtype=torch.bfloat16, memory_format=memory_format)
    t, alpha = torch.tensor([0, 1]), torch.tensor([0.9, 0.4])
    flipped, mirrored = (
        ops.q_sample(each.contiguous(memory_format=memory_format), t, alpha, 1 - alpha, flip=flip, **options)
        for each, flip in ((x, torch.tensor([True, True])), (x.flip(-1), None))
    )
    assert same_bits(flipped, mirrored)
