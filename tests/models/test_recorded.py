"""Other people's networks, number for number: outputs, gradients, and their own weights back."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import UNet, load_unet
from fastdiff.models import dialects

from . import recorded
from .recorded import gradients, largest, largest_of_samples

CASES = [(name, case) for name in recorded.NAMES for case in ("int", "frac")]


@pytest.mark.parametrize("name, case", CASES)
def test_outputs(backend, name, case):
    x, t, extra = recorded.inputs(name, case)
    expected = recorded.fixture(name)[f"{case}.logits" if "classifier" in name else f"{case}.output"]
    with torch.no_grad():
        assert recorded.error(recorded.network(name)(x, t, **extra), expected) < 2e-5


@pytest.mark.parametrize("name, case", [pair for pair in CASES if recorded.DIALECTS[pair[0]] != "diffusers"])
def test_outputs_in_float64(name, case):
    """Frequencies float32, all else float64: so tight that a wrong eps or a float32 table shows."""
    x, t, extra = recorded.inputs(name, case, torch.float64)
    expected = recorded.fixture(name)[f"{case}.logits_f64" if "classifier" in name else f"{case}.output_f64"]
    with torch.no_grad():
        assert recorded.error(recorded.network(name).double()(x, t, **extra), expected) < 1e-6


@pytest.mark.parametrize("name", [name for name in recorded.NAMES if "classifier" not in name])
def test_gradients(backend, name):
    """Of mean(output^2) in x and in weights, one of each kind of layer, relative to the largest number of a sample's
    gradient, or of a weight's.

    The recorded ones are float32 themselves, as far from float64's as ours: up to 4e-5 of a deviation.
    """
    data, model = recorded.fixture(name), recorded.network(name)
    x, t, extra = recorded.inputs(name, "int")
    x = x.clone().requires_grad_()
    model(x, t, **extra).square().mean().backward()
    assert largest_of_samples(x.grad, data["int.grad.x"]) < 2e-5
    found = gradients(model, recorded.DIALECTS[name])
    wanted = [key.removeprefix("int.grad.param.") for key in data if key.startswith("int.grad.param.")]
    assert wanted
    for key in wanted:
        assert largest(found[key], data[f"int.grad.param.{key}"]) < 2e-5, key


@pytest.mark.parametrize("case", ["int", "frac"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-6)])
def test_the_classifiers_gradient(case, dtype, tolerance):
    """Of sum_b log softmax(logits)[y_b] in x: what guides a sampler."""
    name = "classifier_attention"
    data, model = recorded.fixture(name), recorded.network(name).to(dtype)
    x, t, _ = recorded.inputs(name, case, dtype)
    x = x.clone().requires_grad_()
    log_p = F.log_softmax(model(x, t), dim=1).gather(1, data["y"][:, None])[:, 0]
    log_p.sum().backward()
    suffix = "_f64" if dtype is torch.float64 else ""
    assert recorded.error(log_p.detach(), data[f"{case}.log_p_y{suffix}"]) < tolerance
    assert largest_of_samples(x.grad, data[f"{case}.grad_x{suffix}"]) < tolerance


@pytest.mark.parametrize("name", recorded.NAMES)
def test_the_dialect_is_told_by_the_names(name):
    assert dialects.detect(recorded.fixture(name)["sd"]) == recorded.DIALECTS[name]


@pytest.mark.parametrize("name", recorded.NAMES)
def test_one_class(name):
    assert type(recorded.network(name)) is UNet


@pytest.mark.parametrize("name", recorded.NAMES)
def test_the_shapes_tell_what_was_given(name):
    """What the constructor was called with, without need: a wrong number is refused, fewer options give the same."""
    dialect, full = recorded.DIALECTS[name], recorded.network(name).config
    if dialect in ("openai", "guided"):
        given = recorded.options(name)
        needed = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order", "in_channels")
        fewer = {key: value for key, value in given.items() if key in needed}
        assert load_unet(recorded.fixture(name)["sd"], config=fewer).config == full
        with pytest.raises(ValueError, match=r"config must agree with the weights in channels, 32 there, got 64"):
            load_unet(recorded.fixture(name)["sd"], config=given | {"model_channels": 64})
    if dialect == "diffusers":
        asked = ("sample_size", "attention_head_dim", "norm_num_groups", "norm_eps", "freq_shift",
                 "flip_sin_to_cos", "downsample_padding")  # fmt: skip
        defaults = dialects.diffusers_config.DEFAULTS | recorded.options(name)
        assert load_unet(recorded.fixture(name)["sd"], config={key: defaults[key] for key in asked}).config == full
