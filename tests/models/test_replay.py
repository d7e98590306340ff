"""Forward passes made again: the same bits as the first time, and never once anything about the network has changed."""

import copy
import gc
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, ops, schedules
from fastdiff.models import fused, replay
from fastdiff.ops import native

pytestmark = pytest.mark.skipif(not native._C, reason="the C++ kernels are not built")

SMALL = dict(
    in_channels=1, out_channels=1, image_size=8, channels=16, channel_mult=(1, 2), groups=8, num_res_blocks=1,
    attention_resolutions=(),
)  # fmt: skip
VARIANTS = {
    "attention": dict(attention_resolutions=(4,), heads=2),
    "labels": dict(num_classes=3, scale_shift=True),
    "self-conditioned": dict(self_condition=True),
    "low_res": dict(low_res=True),
    "asymmetric": dict(downsample="conv_asymmetric"),
    "blocks that resample": dict(downsample="block", upsample="block"),
    "rms": dict(norm="rms", scale_shift=True, attention_resolutions=(4,), linear_attention_resolutions=(8,)),
    "fourier": dict(fourier_features=16),
}


def network(**options):
    torch.manual_seed(0)
    net = UNet(UNetConfig(**SMALL | options)).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def inputs(B=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randn(B, 1, 8, 8, generator=generator), torch.randint(1000, (B,), generator=generator)
    return x.to(dtype), t


def afresh(net, *arguments, **options):
    """What a network of the same weights, never called before, makes."""
    return copy.deepcopy(net)(*arguments, **options)


def passes(net):
    found = replay._networks.get(net)
    return [value for value in found.known.values() if isinstance(value, replay.Pass)] if found else []


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def net():
    """A network whose forward pass is made again by now."""
    net = network(attention_resolutions=(4,))
    for seed in range(2):
        net(*inputs(seed=seed))
    assert len(passes(net)) == 1
    return net


@pytest.fixture
def never(monkeypatch):
    """never(net): from now on its forward pass in Python fails."""

    def forbid(net):
        def run(*arguments):
            raise AssertionError("the forward pass ran")

        monkeypatch.setattr(UNet, "_run", run)

    return forbid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bits(variant, dtype, never):
    net = network(**VARIANTS[variant]).to(dtype)

    def given(seed):
        x, t = inputs(seed=seed, dtype=dtype)
        options = {"labels": {"y": t % 3}, "low_res": {"low_res": x[..., ::2, ::2]}}.get(variant, {})
        return (x, t), options | ({"x_self_cond": x.flip(0)} if variant == "self-conditioned" else {})

    expected = [afresh(net, *arguments, **options) for arguments, options in map(given, range(5))]
    for seed in range(2):
        net(*given(seed)[0], **given(seed)[1])
    never(net)
    for seed in range(5):
        y = net(*given(seed)[0], **given(seed)[1])
        assert torch.equal(y, expected[seed]) and y.stride() == expected[seed].stride()


def test_results_are_the_callers(net):
    x, t = inputs(seed=3)
    first = net(x, t)
    kept = first.clone()
    second = net(*inputs(seed=4))
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()
    first.zero_()
    assert torch.equal(net(x, t), kept)


def test_layouts_and_views_of_x(net, never):
    x, t = inputs(seed=5)
    expected = afresh(net, x, t)
    wide = torch.zeros(2, 1, 8, 16)
    wide[..., ::2] = x
    never(net)
    for given in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        assert torch.equal(net(given, t), expected)


CHANGES = {
    "in place": lambda net: net.conv_out.bias.add_(1),
    "a filter in place": lambda net: net.conv_in.weight.mul_(2),
    "state_dict": lambda net: net.load_state_dict({key: 0.5 * value for key, value in net.state_dict().items()}),
    "data": lambda net: setattr(net.conv_out.bias, "data", net.conv_out.bias + 1),
    "in place of data": lambda net: [parameter.data.mul_(1.1) for parameter in net.parameters()],
    "there and back": lambda net: net.bfloat16().float(),
    "a new parameter": lambda net: setattr(net.conv_out, "bias", torch.nn.Parameter(net.conv_out.bias + 1)),
    "no parameter": lambda net: setattr(net.conv_out, "bias", None),
    "a parameter less": lambda net: net.conv_out._parameters.pop("bias"),
    "a module": lambda net: net.middle.__setitem__("attention", torch.nn.Identity().eval()),
    "an attribute": lambda net: setattr(net.norm_out, "eps", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_show(net, change):
    x, t = inputs(seed=3)
    before = net(x, t)
    CHANGES[change](net)
    expected = afresh(net, x, t)
    assert not torch.equal(expected, before)
    for _ in range(4):
        assert torch.equal(net(x, t), expected)
    assert len(passes(net)) == 1  # the new one


def test_hooks_are_called(net):
    called = []
    handles = [
        net.middle["attention"].register_forward_hook(lambda *_: called.append("after")),
        net.conv_out.register_forward_pre_hook(lambda *_: called.append("before")),
    ]
    for count in range(1, 5):
        net(*inputs())
        assert called == ["after", "before"] * count
    for handle in handles:
        handle.remove()
    for _ in range(3):
        net(*inputs())
    assert len(passes(net)) == 1


def test_global_hooks_are_called(net):
    called = []
    register = torch.nn.modules.module.register_module_forward_pre_hook
    handle = register(lambda module, _: called.append(module))
    try:
        for count in range(1, 4):
            net(*inputs())
            assert called.count(net.norm_out) == count
    finally:
        handle.remove()


def test_a_module_of_unknown_class_is_called(net):
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return x

    net.middle["attention"] = Counting().eval()
    for count in range(1, 5):
        net(*inputs())
        assert Counting.calls == count


def test_training_draws_masks_anew():
    net = network(dropout=0.5).train()
    results = [net(*inputs()) for _ in range(4)]
    assert not any(torch.equal(results[i], results[j]) for i in range(4) for j in range(i))
    net.eval()
    results = [net(*inputs()) for _ in range(4)]
    assert all(torch.equal(result, results[0]) for result in results) and passes(net)
    net.train()
    assert not torch.equal(net(*inputs()), net(*inputs()))


def test_masks_are_functions_of_the_counters():
    net = network(dropout=0.5).train()
    ids = torch.arange(2)
    first, second = ([net(*inputs(), counters=(ops.rng.make_rng(seed), ids)) for _ in range(4)] for seed in (1, 2))
    for results in (first, second):
        assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(first[0], second[0])


def test_a_block_in_training_draws_masks_anew():
    net = network(dropout=0.5)
    net.middle["block_1"].dropout.train()
    results = [net(*inputs()) for _ in range(4)]
    assert not any(torch.equal(results[i], results[j]) for i in range(4) for j in range(i))


def test_gradients_are_recorded(net):
    x, t = inputs()
    with torch.enable_grad():
        y = net(x.requires_grad_(), t)
        y.sum().backward()
    assert x.grad is not None and net.conv_in.weight.grad is not None


def test_inference_mode(net, never):
    x, t = inputs(seed=3)
    expected = afresh(net, x, t)
    never(net)
    with torch.inference_mode():
        y = net(x, t)
        assert y.is_inference() and torch.equal(y, expected)
        inside = net(*inputs(seed=4))
    assert torch.equal(net(x, t), expected) and torch.equal(inside, net(*inputs(seed=4)))


def test_made_in_inference_mode():
    """Parameters without versions are never relied upon."""
    with torch.inference_mode():
        net = network()
        before = [net(*inputs()) for _ in range(3)]
        net.conv_out.bias.add_(1)
        after = net(*inputs())
    assert not passes(net)
    assert torch.allclose(after, before[-1] + 1, atol=1e-5)


def test_recorded_in_inference_mode(never):
    net = network()
    expected = afresh(net, *inputs(seed=7))
    with torch.inference_mode():
        for seed in range(3):
            net(*inputs(seed=seed))
    never(net)
    assert torch.equal(net(*inputs(seed=7)), expected)


def test_switches(net):
    x, t = inputs(seed=3)
    ours = net(x, t)
    with ops.winograd(False):
        theirs = net(x, t)
        assert torch.equal(theirs, afresh(net, x, t)) and not torch.equal(theirs, ours)
    with ops.use_backend("reference"):
        assert torch.equal(net(x, t), afresh(net, x, t))
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(x, t)
        assert torch.equal(cast, afresh(net, x, t)) and not torch.equal(cast.float(), ours)
    assert torch.equal(net(x, t), ours)


def test_not_under_autocast():
    net = network().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            net(*inputs(dtype=torch.bfloat16))
    assert not passes(net)


def test_simd_levels(net):
    x, t = inputs(seed=3)
    level = native.simd_level()
    try:
        native.set_simd_level("baseline")
        expected = afresh(net, x, t)
        for _ in range(3):
            assert torch.equal(net(x, t), expected)
    finally:
        native.set_simd_level(level)
    assert torch.equal(net(x, t), afresh(net, x, t))


def test_numbers_of_threads(net):
    x, t = inputs(seed=3)
    expected, threads = net(x, t), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert all(torch.equal(net(x, t), expected) for _ in range(3)) and len(passes(net)) == 2
    finally:
        torch.set_num_threads(threads)


def test_few_shapes_are_kept(net):
    sizes = range(1, replay.SHAPES + 3)
    for B in sizes:
        for seed in range(3):
            x, t = inputs(B, seed)
            assert torch.equal(net(x, t), afresh(net, x, t))
    assert [found.output.shape[0] for found in passes(net)] == list(sizes)[-replay.SHAPES :]


def test_no_samples(net):
    for _ in range(3):
        assert net(*inputs(B=0)).shape == (0, 1, 8, 8)


def test_large_passes_are_not_kept(monkeypatch):
    monkeypatch.setattr(replay, "LARGEST", 250_000)
    net, large = network(), inputs(B=8)
    expected = afresh(net, *large)
    assert all(torch.equal(net(*large), expected) for _ in range(4)) and not passes(net)
    for _ in range(2):
        net(*inputs(B=1))
    assert len(passes(net)) == 1


def test_one_that_asks_for_values_is_never_made_again(monkeypatch):
    net, run = network(), UNet._run
    monkeypatch.setattr(UNet, "_run", lambda self, x, t, y, counters=None: run(self, -x if x.sum() > 0 else x, t, y))
    for seed in range(6):
        assert torch.equal(net(*inputs(seed=seed)), afresh(net, *inputs(seed=seed)))
    assert not passes(net)


def test_one_that_draws_or_writes_is_never_made_again(monkeypatch):
    run = UNet._run
    for change in (lambda x: x + torch.randn_like(x), lambda x: x.add_(1)):
        net = network()
        monkeypatch.setattr(UNet, "_run", lambda self, x, t, y, counters=None, c=change: run(self, c(x.clone()), t, y))
        for _ in range(3):
            net(*inputs())
        assert not passes(net)


def test_a_pass_that_goes_wrong_is_not_kept(monkeypatch):
    net = network()
    monkeypatch.setattr(replay.Native, "__call__", lambda self: None)
    for _ in range(3):
        assert torch.equal(net(*inputs()), afresh(net, *inputs()))
    assert not passes(net)


def test_a_function_that_does_otherwise_is_not_called(monkeypatch, never):
    net = network()
    expected = afresh(net, *inputs(seed=7))
    wrong = lambda x, out=None: torch.zeros_like(x) if out is None else out.zero_()  # noqa: E731
    monkeypatch.setattr(torch, "sin", wrong)  # the network calls the tensor's method
    for seed in range(2):
        net(*inputs(seed=seed))
    never(net)
    assert torch.equal(net(*inputs(seed=7)), expected)


def test_an_error_in_the_recording_alone_is_none(monkeypatch):
    net, linear = network(), fused.linear

    def unknown(*arguments):
        if torch._C._len_torch_dispatch_stack():
            raise NotImplementedError("nobody may watch this")
        return linear(*arguments)

    monkeypatch.setattr(fused, "linear", unknown)
    for seed in range(4):
        assert torch.equal(net(*inputs(seed=seed)), afresh(net, *inputs(seed=seed)))
    assert not passes(net) and native._C.record(False) is None


def test_threads_do_not_share_memory(net):
    given = [inputs(seed=seed) for seed in range(4)]
    expected = [afresh(net, *pair) for pair in given]

    def work(i):
        with torch.no_grad():
            return all(torch.equal(net(*given[i]), expected[i]) for _ in range(30))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_copies_are_networks_of_their_own(net):
    x, t = inputs(seed=3)
    expected = net(x, t)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not passes(other) and torch.equal(other(x, t), expected)
        other.conv_out.bias.add_(1)
        assert not torch.equal(other(x, t), expected) and torch.equal(net(x, t), expected)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="nobody counts the references to None any more")
def test_calls_leave_no_references(net):
    given = inputs()
    net(*given)
    before = sys.getrefcount(None)
    for _ in range(100):
        net(*given)
    assert sys.getrefcount(None) - before < 100


def test_nothing_outlives_the_network():
    net = network()
    for _ in range(3):
        net(*inputs())
    (found,) = passes(net)
    gone = [weakref.ref(value) for value in (net, found, net.conv_in.weight)]
    del net, found
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_samples_are_the_same(net):
    process = GaussianProcess(schedules.linear(100))
    images = Sampler(net, process, "ddim", 10).sample(2, seed=1)
    other = network(attention_resolutions=(4,))
    found = Sampler(lambda x, t: copy.deepcopy(other)(x, t), process, "ddim", 10).sample((2, 1, 8, 8), seed=1)
    assert torch.equal(images, found)

