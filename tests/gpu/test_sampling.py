"""Sampling on a real GPU: the CPU's numbers, graphs, no synchronisation, memory."""

import copy

import pytest
import torch

import fastdiff
from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, schedules
from fastdiff.ops import _dispatch
from tests.samplers.cases import CASES, SHAPE, model

pytestmark = pytest.mark.gpu

TINY = dict(image_size=16, channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), groups=8)


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(100))


@pytest.fixture(params=CASES)
def case(request, process):
    """(sampler(**options) on the GPU, arguments of its sample)."""
    options, arguments, _ = CASES[request.param]
    return lambda **more: Sampler(model, process, **{"steps": 12, "device": "cuda", **options, **more}), arguments


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = UNet(UNetConfig(**TINY)).cuda().eval()
    for parameter in net.parameters():  # its last layer is born zero
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return net


@pytest.fixture
def no_synchronisation():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
def test_samples_are_those_of_the_cpu(case, backend):
    sampler, arguments = case
    if _dispatch.reason("reverse_step", backend, "cuda"):
        pytest.skip(_dispatch.reason("reverse_step", backend, "cuda"))
    expected = sampler(device="cpu").sample(SHAPE, seed=5, **arguments)
    with fastdiff.use_backend(backend):
        found = sampler(cuda_graph=False).sample(SHAPE, seed=5, **arguments)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


def test_a_replayed_run_has_the_bits_of_an_eager_one(case):
    sampler, arguments = case
    expected = sampler(cuda_graph=False).sample((8, *SHAPE[1:]), seed=5, batch_size=4, **_of_eight(arguments))
    found = sampler(cuda_graph=True).sample((8, *SHAPE[1:]), seed=5, batch_size=4, **_of_eight(arguments))
    assert torch.equal(found, expected)


def _of_eight(arguments):
    condition = arguments.get("condition")
    return {**arguments, "condition": condition * 2} if isinstance(condition, list) else arguments


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_network_has_the_bits_of_an_eager_one(process, net, precision):
    options = {"steps": 20, "precision": precision}
    expected = Sampler(net, process, cuda_graph=False, **options).sample(4, seed=1)
    assert torch.equal(Sampler(net, process, cuda_graph=True, **options).sample(4, seed=1), expected)


def test_weights_that_changed_are_seen_by_the_next_run(process, net):
    sampler = Sampler(net, process, steps=10, cuda_graph=True)
    before = sampler.sample(2)
    for parameter in net.parameters():
        parameter.data.mul_(1.5)
    assert torch.equal(sampler.sample(2), Sampler(net, process, steps=10, cuda_graph=False).sample(2))
    assert not torch.equal(sampler.sample(2), before)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_nothing_synchronises_in_a_whole_run(case, cuda_graph, request):
    """From the first tensor on; what is slow to set up is set up by a run before."""
    sampler, arguments = case
    arguments = _on_gpu(arguments)
    sampler(cuda_graph=cuda_graph).sample(SHAPE, **arguments)
    torch.cuda.synchronize()
    request.getfixturevalue("no_synchronisation")
    sampler(cuda_graph=cuda_graph).sample(SHAPE, **arguments)


def _on_gpu(arguments):
    """The user's own tensors where they are used, so that only what the library does is looked at."""
    inpaint = arguments.get("inpaint")
    if inpaint is None:
        return arguments
    return {"inpaint": type(inpaint)(inpaint.known.cuda(), inpaint.mask.cuda(), inpaint.jump_length, inpaint.jumps)}


def test_memory_does_not_grow_with_the_number_of_steps(process, net):
    peaks = []
    for steps in (5, 80):
        sampler = Sampler(net, process, steps=steps, cuda_graph=False)
        sampler.sample(4)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        sampler.sample(4)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] <= 75 * (24 * 4 + 4 * 8) + 4096  # the plan's rows and times


def test_a_replayed_run_gives_its_memory_back(process, net):
    sampler = Sampler(net, process, steps=10, cuda_graph=True)
    sampler.sample(4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        sampler.sample(4)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


def test_compiled_samples_are_those_of_eager(process, net):
    expected = Sampler(net, process, steps=5, precision="fp32", cuda_graph=False).sample(4)
    compiled = Sampler(copy.deepcopy(net), process, steps=5, precision="fp32", compile=True)
    torch.testing.assert_close(compiled.sample(4), expected, rtol=0, atol=5e-3)


def test_a_model_that_reads_runs_without_a_graph(process):
    def reading(x, t):
        return model(x, t) if t[0].item() >= 0 else None

    sampler = Sampler(reading, process, steps=6, device="cuda")
    with pytest.warns(RuntimeWarning, match="running without a CUDA graph"):
        found = sampler.sample(SHAPE)
    expected = Sampler(model, process, steps=6, device="cuda", cuda_graph=False).sample(SHAPE)
    assert torch.equal(found, expected)
