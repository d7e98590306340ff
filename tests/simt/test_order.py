"""What the CUDA kernels compute does not depend by a bit on the order in which blocks, warps and lanes run."""

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import rng
from tests.ops import losses
from tests.ops import test_group_norm_silu as norm
from tests.ops import test_reverse_step as step
from tests.ops import test_rms_norm_silu as rms
from tests.ops.accuracy import same_bits
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

KEY, IDS = rng.make_rng(1, 2), torch.arange(2)


def normal(memory_format):
    return [ops.normal((2, 3, 17, 19), KEY, IDS, memory_format=memory_format)]


def q_sample(memory_format):
    x_start = torch.full((2, 3, 17, 19), 7, dtype=torch.uint8).contiguous(memory_format=memory_format)
    t, alpha, flip = torch.tensor([1, 0]), torch.tensor([0.9, 0.4]), torch.tensor([True, False])
    return ops.q_sample(x_start, t, alpha, 1 - alpha, rng=KEY, sample_ids=IDS, flip=flip, return_noise=True)


def reverse_step(memory_format):
    arguments = step.laid_out(step.inputs((2, 3, 17, 19), "history written", "cpu"), memory_format)
    rows = step.table(step.ROWS["history written"])
    return [ops.reverse_step(rows=rows, row=torch.tensor(0), **arguments), arguments["history"]]


def group_norm_silu(memory_format, shape=(3, 12, 9, 7), groups=3):
    arguments = norm.inputs(shape, torch.float32, "cpu")
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    return norm.with_gradients(lambda **a: ops.group_norm_silu(groups=groups, **a), arguments, norm.upstream(shape))


def group_norm_silu_in_chunks(memory_format):
    return group_norm_silu(memory_format, (2, 8, 70, 66), 2)


def loss_inputs(memory_format, shape):
    output, x_start, x_t = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).split([2, 1, 1])
    output = torch.cat([*output], dim=1)
    return [each.contiguous(memory_format=memory_format) for each in (output, x_start[0], x_t[0])]


def diffusion_loss(memory_format, shape=(2, 3, 17, 19)):
    output, x_start, _ = loss_inputs(memory_format, shape)
    t, alpha = torch.tensor([1, 0]), torch.tensor([0.9, 0.4])
    options = dict(rng=KEY, sample_ids=IDS, flip=torch.tensor([True, False]))
    return losses.with_gradient(
        lambda m: ops.diffusion_loss(m, x_start, t, alpha, 1 - alpha, **options), output, torch.ones(2)
    )


def diffusion_loss_in_chunks(memory_format):
    return diffusion_loss(memory_format, (2, 3, 76, 76))


def vlb_terms(memory_format, shape=(2, 3, 17, 19)):
    output, x_start, x_t = loss_inputs(memory_format, shape)
    table = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    return losses.with_gradient(
        lambda m: ops.vlb_terms(m, x_start, x_t, torch.tensor([1, 0]), table), output, torch.ones(2)
    )


def group_norm_silu_with_dropout(memory_format, shape=(3, 12, 9, 7), groups=3):
    arguments = norm.inputs(shape, torch.float32, "cpu") | {"residual": norm.upstream(shape, 1)}
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    return norm.with_gradients(lambda **a: norm.fused(0.3, groups=groups, **a), arguments, norm.upstream(shape))


def group_norm_silu_with_dropout_in_chunks(memory_format):
    return group_norm_silu_with_dropout(memory_format, (2, 8, 70, 66), 2)


def rms_norm_silu(memory_format, shape=(3, 24, 20, 13)):
    arguments = rms.inputs(shape, torch.float32, "cpu")
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    return rms.with_gradients(lambda **a: ops.rms_norm_silu(**a), arguments, rms.upstream(shape))


def rms_norm_silu_in_chunks(memory_format):
    return rms_norm_silu(memory_format, (1, 4400, 2, 3))


OPS = [
    normal,
    q_sample,
    reverse_step,
    group_norm_silu,
    group_norm_silu_in_chunks,
    group_norm_silu_with_dropout,
    group_norm_silu_with_dropout_in_chunks,
    rms_norm_silu,
    rms_norm_silu_in_chunks,
    diffusion_loss,
    diffusion_loss_in_chunks,
    vlb_terms,
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_bits_do_not_depend_on_the_order(op, memory_format):
    results = []
    for seed in range(4):
        with harness.installed(), fastdiff.use_backend("cpu"), harness.seed(seed):
            results.append(op(memory_format))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))
