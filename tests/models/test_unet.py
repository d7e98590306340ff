"""The whole network: against a plain one, its layout, its gradients, its copies."""

import copy
import io
import pickle

import pytest
import torch

import fastdiff
from fastdiff import UNet, UNetConfig, ops
from fastdiff.models.attention import Attention
from fastdiff.models.norms import GroupNormSiLU
from tests.models.plain import unet

SMALL = dict(image_size=8, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4)
CONFIGS = {
    "small": SMALL,
    "grey, one level": dict(SMALL, in_channels=1, channel_mult=(1,), attention_resolutions=(8,)),
    "three levels, one block": dict(SMALL, channel_mult=(2, 1, 3), num_res_blocks=1, attention_resolutions=(8, 2)),
    "heads": dict(SMALL, heads=2),
    "head_channels, scale_shift": dict(SMALL, head_channels=4, scale_shift=True),
    "twice as many channels out": dict(SMALL, in_channels=2, out_channels=4, groups=1),
    "more groups": dict(SMALL, groups=8, norm_eps=1e-3),
}


def randomized(config, dtype=torch.float32):
    """A network all of whose weights matter: those that begin as zeros are drawn too."""
    generator = torch.Generator().manual_seed(0)
    model = UNet(UNetConfig(**config))
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def inputs(model, batch=3, dtype=torch.float32, size=None):
    generator = torch.Generator().manual_seed(1)
    C, H, W = model.sample_shape
    x = torch.randn(batch, C, *(size or (H, W)), generator=generator).to(dtype)
    return x, torch.randint(0, 1000, (batch,), generator=generator)


@pytest.mark.parametrize("name", CONFIGS)
def test_against_plain_pytorch(backend, name):
    model = randomized(CONFIGS[name])
    x, t = inputs(model)
    weights = {key: value.double() for key, value in model.state_dict().items()}
    exact = unet(model.config, weights, x.double(), t)
    found = model(x, t)
    assert found.shape == (3, model.config.out_channels, 8, 8)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("name", ["small", "head_channels, scale_shift"])
def test_gradients_are_those_of_plain_pytorch(backend, name):
    model = randomized(CONFIGS[name], torch.float64)
    x, t = inputs(model, dtype=torch.float64)
    x.requires_grad_()
    weights = {key: value.detach().clone().requires_grad_() for key, value in model.state_dict().items()}
    other = x.detach().clone().requires_grad_()
    for output in (model(x, t), unet(model.config, weights, other, t)):
        output.sin().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-5, atol=1e-5)
    # The sinusoids are float32 in ours and float64 in the plain one.
    for key, parameter in model.named_parameters():
        tolerance = 1e-4 * weights[key].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, weights[key].grad, rtol=1e-4, atol=tolerance, msg=key)


def test_it_is_ddpms_network_parameter_for_parameter():
    """35,746,307: the count of the published CIFAR-10 model."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(UNetConfig()).parameters()) == 35_746_307


def test_every_norm_is_the_fused_op(monkeypatch):
    """One op for each norm, with the time embedding's add in it; no SiLU of torch but the embedding's two."""
    calls, silus = [], []
    fused, silu = ops.group_norm_silu, torch.nn.functional.silu
    monkeypatch.setattr(ops, "group_norm_silu", lambda *args, **names: (calls.append(names), fused(*args, **names))[1])
    monkeypatch.setattr(torch.nn.functional, "silu", lambda h: (silus.append(h.shape), silu(h))[1])
    monkeypatch.setattr(torch.nn.functional, "group_norm", None)
    model = randomized(SMALL)
    model(*inputs(model))
    norms = [module for module in model.modules() if isinstance(module, GroupNormSiLU)]
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    blocks = 2 * 2 + 2 + 2 * 3
    assert len(calls) == len(norms) == 2 * blocks + len(attentions) + 1 and len(attentions) == 2 + 1 + 3
    assert sum(call["add"] is not None for call in calls) == blocks
    assert sum(not call["silu"] for call in calls) == len(attentions)
    assert silus == [(3, 32)] * 2
    assert not any(isinstance(module, torch.nn.GroupNorm | torch.nn.SiLU) for module in model.modules())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
def test_channels_last_throughout(backend, channels, memory_format, training):
    model = randomized(dict(SMALL, in_channels=channels)).train(training)
    seen = []

    def look(module, arguments, output):
        linear = isinstance(module, torch.nn.Linear)  # of [B, H, W, C]
        memory_format = torch.contiguous_format if linear else torch.channels_last
        for tensor in (*arguments, output):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4 and tensor.shape[1] > 1:
                seen.append((type(module).__name__, tensor.is_contiguous(memory_format=memory_format)))

    for module in model.modules():
        if module is not model:
            module.register_forward_hook(look)
    x, t = inputs(model)
    output = model(x.contiguous(memory_format=memory_format), t)
    assert {"Conv2d", "GroupNormSiLU", "ResBlock", "Attention", "Downsample", "Upsample"} <= {name for name, _ in seen}
    assert not [name for name, last in seen if not last]
    output.sum().backward()
    for weight in (parameter for parameter in model.parameters() if parameter.dim() == 4):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_either_layout_gives_the_same_bits(backend):
    model = randomized(SMALL)
    x, t = inputs(model)
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last), t), model(x, t))


def test_a_new_network_predicts_nothing():
    model = UNet(UNetConfig(**SMALL))
    assert not model(*inputs(model)).any()


def test_times_differ_and_may_be_floats():
    model = randomized(SMALL)
    x, t = inputs(model)
    assert torch.equal(model(x, t), model(x, t.float()))
    assert (model(x, t) - model(x, t.float() + 0.5)).abs().max() > 1e-6


def test_samples_do_not_see_one_another():
    model = randomized(SMALL)
    x, t = inputs(model)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(x, t), alone)
    assert model(x[:0], t[:0]).shape == (0, 3, 8, 8)


def test_other_sizes():
    model = randomized(SMALL)
    for size in ((12, 4), (2, 2)):
        assert model(*inputs(model, size=size)).shape == (3, 3, *size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = randomized(SMALL)
    x, t = inputs(model)
    exact = model.double()(x.double(), t)
    found = model.to(dtype)(x.to(dtype), t)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_autocast(backend):
    model = randomized(SMALL)
    x, t = inputs(model)
    exact = model(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, t)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())
    found.float().sum().backward()
    assert all(parameter.grad.dtype is torch.float32 for parameter in model.parameters())


def torch_round_trip(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), torch_round_trip])
def test_copies(duplicate):
    model = randomized(SMALL)
    other = duplicate(model)
    assert other.config == model.config and torch.equal(other(*inputs(model)), model(*inputs(model)))
    assert other.conv_in.weight.data_ptr() != model.conv_in.weight.data_ptr()
    assert other.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_it_compiles_whole():
    model = randomized(SMALL)
    x, t = inputs(model)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x, t), model(x, t), rtol=1e-3, atol=1e-4)


def test_it_is_what_the_sampler_asks_for():
    model = randomized(SMALL)
    assert model.sample_shape == (3, 8, 8) and model.memory_format is torch.channels_last
    process = fastdiff.GaussianProcess(fastdiff.schedules.linear(1000))
    assert fastdiff.Sampler(model, process, steps=2).sample(2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("x, t, kind, message", [
    (torch.zeros(2, 1, 8, 8), torch.zeros(2), ValueError, r"x must have shape \[B, 3, H, W\], got \[2, 1, 8, 8\]"),
    (torch.zeros(3, 8, 8), torch.zeros(3), ValueError, r"x must have shape \[B, 3, H, W\], got \[3, 8, 8\]"),
    (torch.zeros(2, 3, 8, 7), torch.zeros(2), ValueError, r"x must have H and W divisible by 2, got \[2, 3, 8, 7\]"),
    (torch.zeros(2, 3, 8, 8), torch.zeros(3), ValueError, r"t must have shape \[2\], got \[3\]"),
    (torch.zeros(2, 3, 8, 8), torch.zeros(()), ValueError, r"t must have shape \[2\], got \[\]"),
    (torch.zeros(2, 3, 8, 8), 5, TypeError, "t must be a tensor, got int"),
    ([1.0], torch.zeros(2), TypeError, "x must be a tensor, got list"),
])  # fmt: skip
def test_bad_inputs(x, t, kind, message):
    with pytest.raises(kind, match=message):
        UNet(UNetConfig(**SMALL))(x, t)


def test_bad_config():
    with pytest.raises(TypeError, match="config must be a UNetConfig, got dict"):
        UNet(SMALL)
