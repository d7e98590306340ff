"""What torch.set_default_dtype and torch.set_default_device say is of the caller's tensors, not of ours."""

import ast

import pytest
import torch

import fastdiff
from fastdiff.samplers import ClassifierFree
from tests.test_import import modules

FLOATS = ("empty", "empty_strided", "zeros", "ones", "linspace", "logspace")  # of the default dtype unless told
FACTORIES = (*FLOATS, "arange", "full", "tensor")


def unsaid(tree, factories, argument):
    """The calls torch.<factory>(...) without this argument."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func.value) == "torch" and call.func.attr in factories
        and not {argument, None} & {keyword.arg for keyword in call.keywords}
    ]  # fmt: skip


def test_new_tensors_say_theirs():
    """Kernels write float32 where they are given room for it: of another dtype it would be too little."""
    mine = "ops", "processes", "samplers"
    trees = {name: tree for name, tree, _ in modules() if name.split(".")[1:2] in [[each] for each in mine]}
    found = {name: unsaid(tree, FLOATS, "dtype") + unsaid(tree, FACTORIES, "device") for name, tree in trees.items()}
    assert len(trees) > 50 and not {name: calls for name, calls in found.items() if calls}


@pytest.fixture(params=["float64", "bfloat16", "device"])
def default(request):
    """Sets one, in the test."""
    yield lambda: (
        torch.set_default_device("meta") if request.param == "device" else
        torch.set_default_dtype(getattr(torch, request.param))
    )  # fmt: skip
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def test_the_check_sees_what_is_not_said():
    tree = ast.parse("torch.empty(3, device=d); torch.zeros(2, **o); torch.arange(3); x.empty(1)")
    assert unsaid(tree, FLOATS, "dtype") == ["torch.empty(3, device=d)"]
    assert unsaid(tree, FACTORIES, "device") == ["torch.arange(3)"]


def model(x, t, y):
    assert x.dtype is torch.float32
    return x * 0.5 + y[:, None, None, None]


@pytest.mark.parametrize("solver", ["ddpm", "heun", "unipc", "predictor_corrector", "dpm_adaptive"])
def test_samples_are_the_same(default, solver):
    ids, y, uncond = range(2), torch.tensor([0.1, 0.2]), torch.zeros(1)
    guidance = ClassifierFree(2.0, {"y": uncond})

    def sample():
        process = fastdiff.GaussianProcess(fastdiff.schedules.cosine(20))
        steps = None if solver == "dpm_adaptive" else 6
        sampler = fastdiff.Sampler(model, process, solver, steps, guidance=guidance, clip=1.0)
        return sampler.sample((2, 1, 4, 4), seed=3, sample_ids=ids, condition={"y": y})

    expected = sample()
    default()
    found = sample()
    assert found.dtype is torch.float32 and found.device.type == "cpu" and torch.equal(found, expected)


def test_a_network_is_the_same(default):
    small = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "image_size": 8, "attention_resolutions": ()}
    net = fastdiff.UNet(fastdiff.UNetConfig(**small)).eval()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
    with torch.no_grad():
        expected = net(x, t)
        net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})  # nothing kept
        default()
        assert torch.equal(net(x, t), expected)
