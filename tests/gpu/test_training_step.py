"""A training step captured in a real CUDA graph."""

import pytest
import torch

from fastdiff import GaussianProcess, UNet, UNetConfig, ops, schedules
from fastdiff.capture import Capture
from fastdiff.ops import rng

from .test_sampling import TINY

pytestmark = pytest.mark.gpu


def training_step(process, images, capturable):
    """(step, model): all that changes from step to step is on the device."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**TINY)).cuda().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True, capturable=capturable)
    counters, ids = rng.make_rng(5, device="cuda"), torch.arange(len(images), device="cuda")

    def step():
        t = (37 * ids + 11 * counters[1]) % process.num_timesteps
        x_t, noise = process.q_sample(
            images, t, rng=counters, sample_ids=ids, return_noise=True, memory_format=torch.channels_last
        )
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            output = model(x_t, t)
        loss = (output.float() - noise).square().mean()
        loss.backward()
        optimizer.step()
        counters[1:].add_(1)
        return loss.detach()

    return step, model


@pytest.fixture
def task():
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return GaussianProcess(schedules.linear(1000)), images.cuda()


def test_replayed_steps_learn_what_eager_ones_do(task):
    torch.backends.cudnn.deterministic = True
    try:
        (step, model), (eager, expected) = training_step(*task, True), training_step(*task, True)
        capture = Capture(step, torch.device("cuda", torch.cuda.current_device()), required=True)
        losses = [(capture().item(), eager().item()) for _ in range(10)]
    finally:
        torch.backends.cudnn.deterministic = False
    assert len(capture.graphs) == 1
    for found, right in losses:
        assert found == pytest.approx(right, rel=1e-3)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_no_op_of_a_step_synchronises(task):
    step, _ = training_step(*task, True)
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_ops_allocate_their_outputs_and_no_more(task):
    """The peak of a call is what it returns (and, for the norm, its statistics and the documented workspace)."""
    process, images = task
    t, ids = torch.zeros(8, dtype=torch.int64, device="cuda"), torch.arange(8, device="cuda")
    counters = rng.make_rng(5, device="cuda")
    x = torch.randn(8, 64, 32, 32, device="cuda")
    weight, bias = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    calls = {
        "q_sample": (lambda: process.q_sample(images, t, rng=counters, sample_ids=ids), 0),
        "normal": (lambda: ops.normal(x.shape, counters, ids), 0),
        "group_norm_silu": (lambda: ops.group_norm_silu(x, 32, weight, bias), 1 << 20),
    }
    for name, (call, workspace) in calls.items():
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        extra = torch.cuda.max_memory_allocated() - before - result.nbytes
        assert extra <= workspace + 512, f"{name} takes {extra} bytes beside its output"
