"""The bytes that the CUDA kernels move, are those of benchmarks/ledger.py, in full sectors."""

import collections

import pytest
import torch

import fastdiff
from benchmarks import ledger
from fastdiff import ops
from fastdiff.ops import rng
from tests.ops import test_group_norm_silu as norm
from tests.ops import test_rms_norm_silu as rms
from tests.ops.test_reverse_step import DDPM, ROWS, inputs, laid_out, table
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

FIRST, LAST = torch.contiguous_format, torch.channels_last
DTYPES = [torch.float32, torch.bfloat16]
CASES = {
    "image, channels first": ((2, 3, 32, 32), FIRST),
    "image, channels last": ((2, 3, 32, 32), LAST),
    "latent, channels last": ((2, 4, 32, 32), LAST),
    "few channels, channels last": ((2, 8, 16, 16), LAST),
    "activation, channels first": ((2, 64, 8, 8), FIRST),
    "activation, channels last": ((2, 64, 8, 8), LAST),
}
EACH = [pytest.param(*case, id=name) for name, case in CASES.items()]


SHARED = "workspace", "weight", "scale", "shift"  # what several blocks or launches read


def counted(op, *arguments, **options):
    """What its launches did, by tensor."""
    with harness.installed(), fastdiff.use_backend("cpu"), harness.counted() as launches:
        op(*arguments, **options)
    total = collections.defaultdict(collections.Counter)
    for launch in launches:
        for name, counts in launch["tensors"].items():
            total[name].update(counts)
    return total


def check(tensors, minimum):
    """All bytes within 2% of the minimum, and those of large tensors as in `check_large`."""
    moved = {name: each["read"] + each["written"] for name, each in tensors.items()}
    assert sum(moved.values()) == pytest.approx(sum(minimum.values()), rel=0.02)
    check_large(tensors, minimum)


def check_large(tensors, minimum):
    """Bytes within 2% of the minimum, in sectors that are full and touched no oftener than the bytes."""
    moved = {name: each["read"] + each["written"] for name, each in tensors.items()}
    for name in (name for name in minimum if minimum[name] >= 4096 and name not in SHARED):
        each = tensors[name]
        assert moved[name] == pytest.approx(minimum[name], rel=0.02)
        sectors = each["read_sectors"] + each["written_sectors"]
        needed = each["read_minimal_sectors"] + each["written_minimal_sectors"]
        assert needed >= 0.95 * sectors, f"{name}: {needed} of {sectors} sectors"
        once = name != "mask"  # which channels may share
        assert not once or 32 * sectors <= moved[name] / 0.95, f"{name}: {32 * sectors} bytes for {moved[name]}"


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normal(shape, memory_format, dtype):
    tensors = counted(ops.normal, shape, rng.make_rng(1), torch.arange(2), dtype=dtype, memory_format=memory_format)
    check(tensors, ledger.normal(shape, dtype.itemsize))


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.uint8, *DTYPES])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_q_sample(shape, memory_format, dtype, source, given):
    t, alpha, sigma = torch.tensor([3, 5]), *torch.rand(2, 10)
    x_start = (100 * torch.rand(shape)).to(source).contiguous(memory_format=memory_format)
    noise = torch.randn(shape).contiguous(memory_format=memory_format) if given else None
    counters = {} if given else dict(rng=rng.make_rng(1), sample_ids=torch.arange(2))
    tensors = counted(ops.q_sample, x_start, t, alpha, sigma, noise, dtype=dtype, return_noise=True, **counters)
    check(tensors, ledger.q_sample(shape, source.itemsize, dtype.itemsize, 4 * given, noise_out=True))


FLIPPED = [(2, C, 32, 32) for C in range(1, 9)] + [(2, 3, 32, 96), (2, 4, 8, 512)]


@pytest.mark.parametrize("shape", FLIPPED, ids=str)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample_of_flipped_images(shape, memory_format, source, dtype):
    t, (alpha, sigma) = torch.tensor([3, 5]), torch.rand(2, 10)
    x_start = (100 * torch.rand(shape)).to(source).contiguous(memory_format=memory_format)
    options = dict(rng=rng.make_rng(1), sample_ids=torch.arange(2), dtype=dtype, flip=torch.tensor([True, True]))
    tensors = counted(ops.q_sample, x_start, t, alpha, sigma, **options)
    check(tensors, ledger.q_sample(shape, source.itemsize, dtype.itemsize, flip=True))


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_reverse_step(shape, memory_format, dtype, name):
    learned, guided = name.startswith("learned"), name.startswith("guid")
    arguments = laid_out(inputs(shape, name, "cpu", dtype, torch.bfloat16, guided, learned), memory_format)
    arguments["model_output"] = arguments["model_output"].contiguous(memory_format=memory_format)
    model_input = torch.empty(shape, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    tensors = counted(
        ops.reverse_step, rows=table(ROWS[name], ROWS[name]), row=torch.tensor(0), model_input=model_input, **arguments
    )
    mask = arguments["mask"].numel() if "mask" in arguments else None
    check(tensors, ledger.reverse_step(shape, ROWS[name], dtype.itemsize, 2, guided, 2, mask_elements=mask))


MIXED = [pytest.param(FIRST, LAST, id="last from first"), pytest.param(LAST, FIRST, id="first from last")]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("of", "to"), MIXED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample_between_layouts(channels, of, to, dtype):
    shape, t, (alpha, sigma) = (2, channels, 32, 32), torch.tensor([3, 5]), torch.rand(2, 10)
    x_start = (100 * torch.rand(shape)).to(torch.uint8).contiguous(memory_format=of)
    options = dict(rng=rng.make_rng(1), sample_ids=torch.arange(2), dtype=dtype, return_noise=True)
    tensors = counted(ops.q_sample, x_start, t, alpha, sigma, memory_format=to, **options)
    check(tensors, ledger.q_sample(shape, 1, dtype.itemsize, noise_out=True))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("of", "to"), MIXED)
@pytest.mark.parametrize("name", ["ddpm", "learned variance", "guided", "history written"])
def test_reverse_step_between_layouts(channels, of, to, name):
    shape, learned, guided = (2, channels, 32, 32), name.startswith("learned"), name.startswith("guid")
    arguments = laid_out(inputs(shape, name, "cpu", torch.float32, torch.bfloat16, guided, learned), to)
    arguments["model_output"] = arguments["model_output"].contiguous(memory_format=of)
    tensors = counted(ops.reverse_step, rows=table(ROWS[name], ROWS[name]), row=torch.tensor(0), **arguments)
    check(tensors, ledger.reverse_step(shape, ROWS[name], 4, 2, guided))


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
def test_reverse_step_that_draws(shape, memory_format):
    x, m = torch.randn(2, *shape)
    x, m = x.contiguous(memory_format=memory_format), m.contiguous(memory_format=memory_format)
    tensors = counted(
        ops.reverse_step, x, m, table(DDPM), torch.tensor(0), rng=rng.make_rng(1), sample_ids=torch.arange(2)
    )
    check(tensors, ledger.reverse_step(shape, DDPM, 4, 4, drawn=True))


ALWAYS = "once once once once"
ACTIVATIONS = {  # shape, groups; how often it is read forward and backward, channels first and last: float32; bfloat16
    "on chip": ((2, 128, 16, 16), 32, ALWAYS, ALWAYS),
    "channels of a group not a multiple of 8": ((2, 96, 16, 16), 32, ALWAYS, ALWAYS),
    "few channels": ((2, 48, 16, 16), 16, ALWAYS, ALWAYS),
    "beyond a block": ((1, 16, 128, 128), 2, "twice twice twice twice", "twice twice twice twice"),
    "beyond a block of the backward pass": ((1, 4, 96, 128), 2, "once twice twice twice", "once twice twice twice"),
    "many groups": ((1, 64, 64, 64), 32, "once once once twice", "once once twice twice"),
}


def reads_of(words, memory_format):
    """Of the forward and of the backward pass."""
    return [1 + (word == "twice") for word in words.split()[2 * (memory_format is LAST) :][:2]]


def records_of(tensors, shape, groups):
    """Statistics in a forward pass' workspace, for a sample and group."""
    return tensors["workspace"]["written"] // (16 * shape[0] * groups) if "workspace" in tensors else 0


def chunks_of(tensors, shape, groups):
    """Chunks along the positions, from what a backward pass writes to its workspace."""
    B, C = shape[:2]
    return (tensors["workspace"]["written"] - 8 * B * groups) // (16 * B * C) - 1


def check_workspace(tensors, x):
    """What passes between launches is little beside the activation, and in full sectors."""
    each = tensors.get("workspace", collections.Counter())
    sectors = each["read_sectors"] + each["written_sectors"]
    assert 32 * sectors <= 0.25 * tensors[x]["read_sectors"] * 32
    assert each["written_minimal_sectors"] >= 0.95 * each["written_sectors"]


FILMS = ("add", "scale", "shift")


@pytest.mark.parametrize(("shape", "groups", "f32", "bf16"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_silu(shape, groups, f32, bf16, memory_format, dtype):
    last, size = memory_format is LAST, dtype.itemsize
    reads = reads_of(f32 if size == 4 else bf16, memory_format)
    assert reads == [ledger.group_norm_reads(shape, groups, size, last, backward) for backward in (False, True)]
    leaves = {name: value.requires_grad_() for name, value in norm.inputs(shape, dtype, "cpu").items()}
    leaves["x"] = leaves["x"].detach().contiguous(memory_format=memory_format).requires_grad_()
    films, results = dict.fromkeys(FILMS, size), []
    forward = counted(lambda: results.append(ops.group_norm_silu(groups=groups, **leaves)))
    records = records_of(forward, shape, groups)
    check(forward, ledger.group_norm_silu(shape, groups, size, last, records=records, **films))
    check_workspace(forward, "x")
    (y,) = results
    backward = counted(y.backward, torch.ones_like(y))
    chunks = chunks_of(backward, shape, groups)
    check(backward, ledger.group_norm_silu_backward(shape, groups, size, last, chunks=chunks, **films))
    check_workspace(backward, "grad_y")


def loss_images(shape, memory_format, dtype, source, channels=None):
    """model_output of so many channels, x_start, t at 0 and 5."""
    B, C, *space = shape
    output = torch.randn(B, channels or C, *space).to(dtype).contiguous(memory_format=memory_format)
    x_start = (100 * torch.rand(shape)).to(source).contiguous(memory_format=memory_format)
    return output.requires_grad_(), x_start, torch.tensor([3, 5])


def check_both_passes(op, forward, backward):
    """The op's bytes and its gradient's."""
    results = []
    check(counted(lambda: results.append(op())), forward)
    (value,) = results
    check(counted(value.backward, torch.ones_like(value)), backward)


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
@pytest.mark.parametrize("prediction", ["eps", "v", "v, noise given"])
def test_diffusion_loss(shape, memory_format, dtype, source, prediction):
    output, x_start, t = loss_images(shape, memory_format, dtype, source)
    of_x0 = torch.zeros(10) if prediction == "eps" else torch.rand(10) + 0.1
    given = prediction.endswith("given")
    noise = torch.randn(shape).contiguous(memory_format=memory_format) if given else None
    counters = {} if given else dict(rng=rng.make_rng(1), sample_ids=torch.arange(2))
    sizes = dtype.itemsize, 0 if prediction == "eps" else source.itemsize, 4 * given
    check_both_passes(
        lambda: ops.diffusion_loss(output, x_start, t, of_x0, torch.rand(10) + 0.1, noise, **counters),
        ledger.diffusion_loss(shape, *sizes), ledger.diffusion_loss_backward(shape, *sizes),
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_diffusion_loss_beside_a_variance(shape, memory_format, dtype):
    output, x_start, t = loss_images(shape, memory_format, dtype, torch.uint8, 2 * shape[1])
    pairs = memory_format is LAST and shape[1] <= 8
    table, counters = torch.rand(10) + 0.1, dict(rng=rng.make_rng(1), sample_ids=torch.arange(2))
    check_both_passes(
        lambda: ops.diffusion_loss(output, x_start, t, table, table, **counters),
        ledger.diffusion_loss(shape, dtype.itemsize, 1, pairs=pairs),
        ledger.diffusion_loss_backward(shape, dtype.itemsize, 1, pairs=pairs, learned=True),
    )


@pytest.mark.parametrize(("shape", "memory_format"), EACH)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_vlb_terms(shape, memory_format, dtype, learned):
    output, x_start, t = loss_images(shape, memory_format, dtype, torch.uint8, shape[1] * (1 + learned))
    x_t = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    table = torch.rand(10, 8) * torch.tensor([1, 1, 1, 1, 0, 1, learned, 1])
    sizes = shape, dtype.itemsize, 1, learned
    t = torch.tensor([0, 5])
    check_both_passes(
        lambda: ops.vlb_terms(output, x_start, x_t, t, table),
        ledger.vlb_terms(*sizes), ledger.vlb_terms_backward(*sizes),
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "groups"), [case[:2] for case in ACTIVATIONS.values()], ids=ACTIVATIONS)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["first", "last"])
def test_group_norm_silu_with_dropout(shape, groups, memory_format):
    """The residual is read once, and no mask is."""
    x, residual = (value.bfloat16().contiguous(memory_format=memory_format) for value in torch.randn(2, *shape))
    results, last = [], memory_format is LAST
    forward = counted(lambda: results.append(norm.fused(0.3, x=x.requires_grad_(), groups=groups, residual=residual)))
    records = records_of(forward, shape, groups)
    options = dict(weight_size=0, dropout=True)
    check(forward, ledger.group_norm_silu(shape, groups, 2, last, residual=True, records=records, **options))
    (y,) = results
    backward = counted(y.backward, torch.ones_like(y))
    check_large(backward, ledger.group_norm_silu_backward(shape, groups, 2, last, **options))


CHANNELS = {
    "64 channels": ((2, 64, 16, 16), DTYPES, 1, 1),
    "512 channels": ((1, 512, 16, 16), DTYPES, 1, 1),
    "channels not a multiple of 8": ((2, 96, 16, 16), DTYPES, 1, 1),
    "1024 channels": ((1, 1024, 8, 8), [torch.float32], 1, 1),
    "more than a block holds": ((1, 8192, 4, 4), [torch.float32], 2, 4),
}
EACH_PAGE = [
    pytest.param(shape, dtype, chunks, id=f"{name}, {dtype}")
    for name, (shape, dtypes, *chunks) in CHANNELS.items()
    for dtype in dtypes
]


def again(tensors, *names):
    """The same, with what a launch reads twice counted twice: sectors, for these are full."""
    for name in names:
        tensors[name]["read"] = 32 * tensors[name]["read_sectors"]
    return tensors


@pytest.mark.parametrize(("shape", "dtype", "chunks"), EACH_PAGE)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["first", "last"])
def test_rms_norm_silu(shape, dtype, chunks, memory_format):
    last, size = memory_format is LAST, dtype.itemsize
    assert chunks[last] == ledger.rms_norm_chunks(shape, size, last)
    leaves = {name: value.requires_grad_() for name, value in rms.inputs(shape, dtype, "cpu").items()}
    leaves["x"] = leaves["x"].detach().contiguous(memory_format=memory_format).requires_grad_()
    films, results = dict.fromkeys(FILMS[1:], size), []
    forward = counted(lambda: results.append(ops.rms_norm_silu(**leaves)))
    check(again(forward, "x"), ledger.rms_norm_silu(shape, size, last, **films))
    (y,) = results
    backward = counted(y.backward, torch.ones_like(y))
    tiles = backward["workspace"]["written"] // (8 * shape[0] * shape[1]) - 1
    check(again(backward, "x", "grad_y"), ledger.rms_norm_silu_backward(shape, size, last, tiles, **films))
