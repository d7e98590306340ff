"""Capturing a step: what is recorded, replayed, refused."""

import warnings

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.capture import WARM_UP, Capture
from fastdiff.ops import rng
from tests.cuda_graphs import Cuda

CPU = torch.device("cpu")


class Countdown:
    """A step with its place on the device: x = x * factors[place], place = place + 1."""

    def __init__(self):
        self.x, self.place = torch.ones(3), torch.zeros(1, dtype=torch.int64)
        self.factors, self.calls = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0, 13.0]), []

    def __call__(self, kind):
        self.calls.append(kind)
        self.x.mul_(self.factors.index_select(0, self.place)).add_(1 if kind == "odd" else 0)
        self.place.add_(1)
        return self.x + 0.5


def test_first_steps_run_then_one_is_recorded_and_all_the_rest_replay():
    step, cuda = Countdown(), Cuda()
    capture = Capture(step, CPU, cuda=cuda)
    results = [capture("even").clone() for _ in range(6)]
    assert [result[0].item() for result in results] == [2.5, 6.5, 30.5, 210.5, 2310.5, 30030.5]
    assert len(step.calls) == WARM_UP + 1 and step.place.item() == 6
    aside = ["side waits for main", "on side", "main waits for side"]
    assert cuda.log == aside * WARM_UP + ["record on side"] + ["replay"] * (6 - WARM_UP)


def test_each_kind_of_step_has_its_graph():
    step, cuda, expected = Countdown(), Cuda(), Countdown()
    capture, kinds = Capture(step, CPU, cuda=cuda), ["even", "odd"] * 3
    for kind in kinds:
        result = capture(kind)
        assert torch.equal(result, expected(kind)) and torch.equal(step.x, expected.x)
    assert cuda.log.count("record on side") == 2 and step.calls == ["even", "odd"] * 3
    assert set(capture.graphs) == {("even",), ("odd",)}


def test_a_result_stays_in_place():
    capture = Capture(Countdown(), CPU, cuda=Cuda())
    results = [capture("even") for _ in range(6)]
    assert len({result.data_ptr() for result in results[WARM_UP:]}) == 1


class Reading(Countdown):
    def __call__(self, kind):
        if self.x.sum().item() > 1e9:
            self.x.zero_()
        return super().__call__(kind)


def test_a_step_that_reads_goes_on_without_a_graph_and_says_so_once():
    step, expected = Reading(), Countdown()
    capture = Capture(step, CPU, cuda=Cuda())
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted") as all_:
        for kind in ["even", "odd"] * 3:
            assert torch.equal(capture(kind), expected(kind))
    assert len(all_) == 1 and not capture.graphs and capture.refused
    assert len(step.calls) == 6  # the one refused had not come to counting itself


def test_a_step_that_must_be_captured_raises():
    capture = Capture(Reading(), CPU, required=True, cuda=Cuda())
    for _ in range(WARM_UP):
        capture("even")
    with pytest.raises(RuntimeError, match=r"cuda_graph must be False or 'auto' for this step, got True"):
        capture("even")


def test_what_the_device_refuses_is_no_other():
    capture = Capture(Countdown(), CPU, cuda=Cuda(fail=RuntimeError("CUDA error: out of memory\nmore")))
    with pytest.warns(RuntimeWarning, match="graph: CUDA error: out of memory$"):
        results = [capture("even")[0].item() for _ in range(6)]
    assert results == [2.5, 6.5, 30.5, 210.5, 2310.5, 30030.5]


def test_an_error_of_the_step_itself_passes_through():
    def step():
        raise KeyError("mine")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="mine"):
            Capture(step, CPU, cuda=Cuda())()


def training_step(process, images):
    """(step, parameters): noising, a network, its gradient, Adam; all that changes on the way is on the device."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 3, 3, padding=1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2, fused=True)
    counters, ids = rng.make_rng(5), torch.arange(len(images))

    def step():
        t = (37 * ids + 11 * counters[1]) % process.num_timesteps
        x_t, noise = process.q_sample(images, t, rng=counters, sample_ids=ids, return_noise=True)
        optimizer.zero_grad(set_to_none=True)
        loss = (net(x_t) - noise).square().mean()
        loss.backward()
        optimizer.step()
        counters[1:].add_(1)
        return loss.detach()

    return step, list(net.parameters())


def test_a_training_step():
    process = GaussianProcess(schedules.linear(100))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (step, weights), (eager, expected) = (training_step(process, images) for _ in range(2))
    capture = Capture(step, CPU, required=True, cuda=Cuda())
    for _ in range(6):
        assert torch.equal(capture(), eager())
    assert len(capture.graphs) == 1 and all(map(torch.equal, weights, expected))


def test_a_graph_converts_weights_itself():
    """What autocast keeps for later calls is gone when it ends, and old when the weights change."""
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    capture = Capture(lambda: layer(x), CPU, required=True, cuda=Cuda())
    for _ in range(3):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = [capture().clone() for _ in range(4)]
            expected = layer(x)
        assert all(torch.equal(value, expected) for value in found)
        layer.weight.data.mul_(2)
    assert torch.is_autocast_cache_enabled()


def test_the_stand_in_freezes_what_the_host_decides():
    """A step that counts on the host replays its count: the stand-in would show it."""
    place, x = [0], torch.zeros(1)

    def step():
        place[0] += 1
        x.fill_(place[0])

    capture = Capture(step, CPU, cuda=Cuda())
    values = []
    for _ in range(5):
        capture()
        values.append(x.item())
    assert values == [1, 2, 3, 3, 3]
