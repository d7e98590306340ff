"""A U-Net in inference on the CPU: by `conv3x3` where it applies, close to float64, and torch's way elsewhere."""

import copy

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, ops, schedules
from fastdiff.models import fused
from fastdiff.ops import _dispatch, native_convolution
from tests.ops.conftest import LEVELS, running_on

SMALL = dict(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), image_size=16, groups=8)
CONFIGS = {"add": SMALL, "scale_shift": SMALL | {"scale_shift": True}}

pytestmark = pytest.mark.skipif(
    _dispatch.reason("conv3x3", "cpu", "cpu", torch.float32) is not None, reason="no native convolution"
)


def network(**options):
    torch.manual_seed(0)
    net = UNet(UNetConfig(**options)).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():  # what begins as nothing would hide errors
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def inputs(net, B=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, *net.sample_shape, generator=generator).to(dtype), torch.arange(B) * 400 + 3


def relative(y, exact):
    return ((y.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.fixture
def calls(monkeypatch):
    """The shapes that went through the fused op."""
    made, original = [], fused.conv

    def conv(module, x, *args, **kwargs):
        made.append(tuple(x.shape))
        return original(module, x, *args, **kwargs)

    monkeypatch.setattr(fused, "conv", conv)
    return made


def check_accuracy(net, calls, count):
    x, t = inputs(net)
    with torch.no_grad():
        y = net(x, t)
        assert len(calls) == count
        with ops.winograd(False):
            eager = net(x, t)
        assert len(calls) == count
        exact = copy.deepcopy(net).double()(x.double(), t)
    assert relative(y, exact) <= 10 * relative(eager, exact)


# Two convolutions in each of 2 + 2 + 4 blocks, one after the upsampling and the last; the first has 3 channels.
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_within_ten_times_eagers_error(calls, options):
    check_accuracy(network(**options), calls, 18)


@pytest.mark.slow
def test_within_ten_times_eagers_error_on_cifar10(calls):
    net = network()
    check_accuracy(net, calls, 2 * (8 + 2 + 12) + 3 + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cast", ["autocast", "to"])
def test_half_precision_is_no_worse_than_eagers(calls, cast, dtype):
    net = network(**SMALL)
    exact_net = copy.deepcopy(net).double()
    if cast == "to":
        net = net.to(dtype)
    x, t = inputs(net, dtype=dtype if cast == "to" else torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=cast == "autocast"):
        y = net(x, t)
        assert y.dtype is dtype and len(calls) == 18
        with ops.winograd(False):
            eager = net(x, t)
    with torch.no_grad():
        exact = exact_net(x.double(), t)
    assert relative(y, exact) <= 1.5 * relative(eager, exact)


@pytest.fixture(params=[level for level in LEVELS if level != "baseline"])
def products(request, monkeypatch):
    """The shapes that went through a product, at each SIMD level at which those were timed."""
    made = []

    def counted(name):
        original = getattr(native_convolution, name)
        return lambda x, *args, **kwargs: (made.append((name, *x.shape)), original(x, *args, **kwargs))[1]

    for name in ("convolution", "linear"):
        monkeypatch.setattr(native_convolution, name, counted(name))
    with running_on(f"cpu-{request.param}"):
        yield made


def test_other_layers_are_products(products, calls):
    """The first convolution, the downsampling and five 1x1 ones; 2 + 8 layers of the time and 2 of each attention."""
    net = network(**SMALL)
    check_accuracy(net, calls, 18)
    names = [name for name, *_ in products]
    assert names.count("convolution") == 7 and names.count("linear") == 2 + 8 + 2 * 4
    products.clear()
    x, t = inputs(net)
    net(x, t)  # gradients on
    with torch.no_grad(), ops.winograd(False):
        net(x, t)
    assert not products


def test_watched_layers_are_no_products(products):
    net, seen = network(**SMALL), []
    layers = [net.conv_in, net.down[0]["downsample"], net.down[1]["blocks"][0].skip, net.middle["attention"].qkv]
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(module))
    x, t = inputs(net)
    with torch.no_grad():
        net(x, t)
    assert seen == layers and [name for name, *_ in products].count("convolution") == 7 - 3


def test_convolutions_that_no_product_is_like(products):
    """Asymmetric frames, groups, dilation and other shapes are torch's."""
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    options = dict(padding=(1, 0)), dict(groups=2), dict(dilation=2), dict(stride=(1, 2)), dict(padding="same")
    convs = [torch.nn.Conv2d(8, 8, 3, **each).eval() for each in options]
    with torch.no_grad():
        for conv in (*convs, torch.nn.Conv2d(8, 8, (3, 1)).eval()):
            assert torch.equal(fused.convolved(conv, x), conv(x))
    assert not products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_adds_what_stands_beside_it(products, dtype):
    generator = torch.Generator().manual_seed(0)
    x, skip = (torch.randn(2, 8, 4, 4, generator=generator).to(dtype) for _ in range(2))
    layers = torch.nn.Conv2d(8, 8, 1).eval().to(dtype), torch.nn.Linear(4, 4).eval().to(dtype)
    for layer, function in zip(layers, (fused.convolved, fused.linear), strict=True):
        with torch.no_grad():
            ours, theirs = function(layer, x, skip), skip + layer(x)
            exact = skip.double() + copy.deepcopy(layer).double()(x.double())
        error, allowed = ((y.double() - exact).abs().max() for y in (ours, theirs))
        assert error <= 1.1 * allowed + 1e-6
    assert len(products) == 2


def test_nothing_breaks_the_graph_of_a_compiled_network(calls, products):
    net = network(**SMALL)
    x, t = inputs(net)
    with torch.no_grad(), ops.winograd(False):
        expected = net(x, t)
    torch._dynamo.reset()
    with torch.no_grad():
        y = torch.compile(net, backend="eager", fullgraph=True)(x, t)
    assert not calls and not products
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_elsewhere_torch_convolves(calls):
    net = network(**SMALL)
    x, t = inputs(net)
    net(x, t).sum().backward()  # gradients on, in evaluation
    with torch.no_grad():
        net.double()(x.double(), t)
        net.float().train()(x, t)
        with ops.use_backend("reference"):
            net.eval()(x, t)
    assert not calls


def test_hooks_are_still_called(calls):
    net, seen = network(**SMALL), []
    block = net.middle["block_1"]
    block.conv_1.register_forward_hook(lambda module, args, output: seen.append(1))
    x, t = inputs(net)
    with torch.no_grad():
        net(x, t)
    assert seen == [1] and len(calls) == 16


def test_active_dropout_is_kept(calls):
    net = network(**SMALL, dropout=0.5)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    x, t = inputs(net)
    with torch.no_grad():
        assert not torch.equal(net(x, t), net(x, t))
    assert len(calls) == 2 * 2  # upsampling and the last


def test_changed_weights_are_seen(calls):
    net = network(**SMALL)
    x, t = inputs(net)
    with torch.no_grad():
        net(x, t)
        for parameter in net.parameters():
            parameter.mul_(0.9)
        y = net(x, t)
        with ops.winograd(False):
            torch.testing.assert_close(y, net(x, t), rtol=1e-4, atol=1e-4)


def test_what_a_forward_pass_settled_does_not_outlive_its_reasons():
    x = torch.randn(1, 4, 4, 4)
    with torch.no_grad(), ops.use_backend("cpu"), fused.settled(x):
        with ops.use_backend("reference"):  # nobody changes this within a pass: it is not asked again
            assert fused.inference(x)
            assert not fused.inference(x.bfloat16())
        with torch.enable_grad():
            assert not fused.inference(x)
    with torch.no_grad(), ops.use_backend("reference"):
        assert not fused.inference(x)


@pytest.mark.parametrize(
    ("name", "options", "norms", "convs"),
    [
        ("add", {"embedding": (1, 128)}, {}, {}),
        ("norm_weight", {}, {"weight": torch.nn.Parameter(torch.ones(16))}, {}),
        ("groups", {}, {"groups": 5}, {}),
        ("bias", {}, {}, {"bias": torch.nn.Parameter(torch.zeros(16))}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_conform_is_refused_by_name(name, options, norms, convs):
    block = network(**SMALL).middle["block_1"]
    for key, value in norms.items():
        setattr(block.norm_1, key, value)
    for key, value in convs.items():
        setattr(block.conv_1, key, value)
    embedding = torch.zeros(options.get("embedding", (2, 128)))
    x = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), pytest.raises(ValueError, match=f"^{name} must"):
        block(x, embedding)


def test_a_residual_of_another_shape_is_refused():
    conv, x = torch.nn.Conv2d(32, 32, 3, padding=1).eval(), torch.randn(2, 32, 8, 8)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^residual must have shape \[2, 32, 8, 8\]"):
        fused.conv(conv, x, residual=x[:1])


@pytest.mark.parametrize(
    ("function", "layer", "x"),
    [
        (fused.linear, torch.nn.Linear(8, 4), torch.zeros(2, 6)),
        (fused.convolved, torch.nn.Conv2d(8, 4, 1), torch.zeros(2, 6, 4, 4)),
    ],
    ids=["linear", "convolution"],
)
def test_other_numbers_of_channels_are_torchs_to_refuse(function, layer, x):
    with torch.no_grad(), pytest.raises(RuntimeError):
        function(layer.eval(), x)


def test_a_norm_without_bias_is_fused(calls):
    block, x = network(**SMALL).middle["block_1"], torch.randn(2, 64, 8, 8)
    block.norm_1.bias = None
    with torch.no_grad():
        y = block(x, torch.zeros(2, 128))
        assert calls
        with ops.winograd(False):
            torch.testing.assert_close(y, block(x, torch.zeros(2, 128)), rtol=1e-4, atol=1e-4)


def test_samples_of_a_seed_are_the_same():
    net = network(**SMALL)
    sampler = Sampler(net, GaussianProcess(schedules.linear(1000)), "ddim", 20, precision="fp32")
    y = sampler.sample(2, seed=3)
    with ops.winograd(False):
        eager = sampler.sample(2, seed=3)
    assert relative(y, eager.double()) < 1e-4


# ---- Training ----


@pytest.fixture
def trained(monkeypatch):
    """The shapes that went through the op with a gradient."""
    made, original = [], ops.conv3x3

    def conv3x3(x, *args, **kwargs):
        y = original(x, *args, **kwargs)
        made.extend([tuple(x.shape)] if y.requires_grad else [])
        return y

    monkeypatch.setattr(ops, "conv3x3", conv3x3)
    return made


def gradients(net, dtype=torch.float32):
    x, t = inputs(net, B=4)
    net.zero_grad()
    y = net(x.to(dtype), t)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return y.detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_training_is_within_ten_times_eagers_error(trained, options):
    """Outputs and every gradient; all convolutions but the first and the last, which have 3 channels."""
    net = network(**options).train()
    y, found = gradients(net)
    assert len(trained) == 17
    with ops.winograd(False):
        eager_y, eager = gradients(net)
    assert len(trained) == 17
    exact_y, exact = gradients(copy.deepcopy(net).double(), torch.float64)
    assert relative(y, exact_y) <= 10 * relative(eager_y, exact_y)
    scale = max(right.abs().max() for right in exact)  # of one parameter alone it may be next to nothing
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        error, allowed = ((g.double() - right).abs().max() for g in (ours, theirs))
        assert error <= 10 * allowed + 1e-7 * scale


def test_training_elsewhere_is_torchs(trained):
    """In half precision, for a few small images, where somebody looks, on another backend."""
    net = network(**SMALL).train()
    with torch.autocast("cpu", torch.bfloat16):
        gradients(net)
    with ops.use_backend("reference"):
        gradients(net)
    x, t = inputs(net, B=1)
    net(x[..., :4, :4], t).sum().backward()
    for module in net.modules():
        module.register_forward_hook(lambda module, args, output: None)
    gradients(net)
    assert not trained


def test_weights_made_to_be_frozen_get_no_gradient(trained):
    net = network(**SMALL).train().requires_grad_(False)
    net.conv_in.requires_grad_(True)
    gradients(net)
    assert len(trained) == 17
    assert net.conv_in.weight.grad.abs().sum() > 0 and net.middle["block_1"].conv_1.weight.grad is None
