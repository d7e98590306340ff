"""The same numbers, gradients, weights and copies as before, by fewer operations; and all of it undone."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import ops

from .foreign import (
    Block,
    Classic,
    Functional,
    GroupNorm32,
    Net,
    OpenAIBlock,
    Spatial,
    assert_near,
    drawn,
    gradients,
    image,
)

X, EMB, T = image(2, 8, 6, 5), image(2, 16), torch.tensor([3.0, 500.0])

# name: (network, its arguments, the kinds of its sites)
NETWORKS = {
    "Sequential": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 4, 1)), (X,),
        ["GroupNorm + SiLU"],
    ),
    "Sequential of Sequentials, SiLU in place": (
        lambda: nn.Sequential(nn.Sequential(GroupNorm32(4, 8), nn.SiLU(inplace=True)), nn.Conv2d(8, 4, 1)), (X,),
        ["GroupNorm + SiLU"],
    ),
    "a norm alone": (lambda: nn.GroupNorm(4, 8), (X,), ["GroupNorm"]),
    "a norm and another activation": (lambda: nn.Sequential(nn.GroupNorm(4, 8), nn.GELU()), (X,), ["GroupNorm"]),
    "block with FiLM": (lambda: Block(True), (X, EMB), ["GroupNorm + SiLU", "GroupNorm + [FiLM] + SiLU"]),
    "block with a sum": (lambda: Block(False), (X, EMB), ["GroupNorm + SiLU", "[add] + GroupNorm + SiLU"]),
    "block without an embedding": (lambda: Block(True), (X,), ["GroupNorm + SiLU", "GroupNorm + [FiLM] + SiLU"]),
    "a network": (
        lambda: Net(True), (image(2, 3, 6, 5), T),
        ["GroupNorm + SiLU", "GroupNorm + [FiLM] + SiLU"] * 2 + ["GroupNorm + SiLU"] * 2,
    ),
    "functional": (Functional, (X, image(2, 4)), ["GroupNorm + [FiLM] + SiLU"]),
    "maps instead of channels": (Spatial, (X, image(2, 8, 6, 5)), ["add + GroupNorm + FiLM + SiLU"]),
    "torchvision's block": (Classic, (X,), ["GroupNorm", "GroupNorm"]),
}  # fmt: skip


def openai(film, **options):
    return lambda: OpenAIBlock(8, 12, 16, film, **options)


NETWORKS["OpenAI's block with FiLM"] = (openai(True), (X, EMB), ["GroupNorm + SiLU", "GroupNorm + FiLM + SiLU"])
NETWORKS["OpenAI's block with a sum"] = (openai(False), (X, EMB), ["GroupNorm + SiLU", "add + GroupNorm + SiLU"])


@pytest.fixture(params=NETWORKS)
def network(request):
    make, args, kinds = NETWORKS[request.param]
    return drawn(make()), args, kinds


def test_outputs_sites_and_the_way_back(network, backend):
    model, args, kinds = network
    expected, types = model(*args), [type(module) for module in model.modules()]
    report = fastdiff.accelerate(model)
    assert [site.kind for site in report.sites] == kinds and all(site.replaced for site in report.sites)
    assert_near(model(*args), expected)
    assert [type(module).__name__ for module in model.modules()] == [kind.__name__ for kind in types]
    report.undo()
    assert [type(module) for module in model.modules()] == types
    assert torch.equal(model(*args), expected)


def test_gradients(network):
    model, args, _ = network
    expected = gradients(model, args)
    fastdiff.accelerate(model)
    for found, wanted in zip(gradients(model, args), expected, strict=True):
        assert_near(found, wanted)


def test_state_dict_and_parameters_are_the_same(network):
    model, _, _ = network
    before, parameters = dict(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    fastdiff.accelerate(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(after[key].data_ptr() == before[key].data_ptr() for key in before)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    model.load_state_dict({key: value + 1 for key, value in before.items()})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_with_their_own_weights(network, copied):
    model, args, _ = network
    fastdiff.accelerate(model)
    expected = model(*args)
    other = copied(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_near(other(*args), expected)


def test_a_deep_copy_stays_accelerated_and_a_pickle_is_plain():
    model = drawn(Block(True))
    fastdiff.accelerate(model)
    assert type(copy.deepcopy(model)) is type(model) is not Block
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=False)) is Block
    assert type(model) is not Block  # left as it was


def calls(monkeypatch, model, args):
    """(fused ops, other norms and SiLUs) of one forward."""
    fused, plain = [], []
    op, norm, silu = ops.group_norm_silu, nn.GroupNorm.forward, nn.SiLU.forward
    monkeypatch.setattr(ops, "group_norm_silu", lambda *a, **k: (fused.append(k), op(*a, **k))[1])
    model(*args)  # which makes the graphs
    fused.clear()
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda *a: (plain.append("norm"), norm(*a))[1])
    monkeypatch.setattr(nn.SiLU, "forward", lambda *a: (plain.append("silu"), silu(*a))[1])
    model(*args)
    return fused, plain


def test_one_op_for_each_norm(monkeypatch):
    """With the sum, the FiLM and the SiLU in it: what is left are the embedding's own activations."""
    model = drawn(Net(True))
    fastdiff.accelerate(model)
    with monkeypatch.context() as patch:
        fused, plain = calls(patch, model, (image(2, 3, 6, 5), T))
    assert len(fused) == 6 and all(call["silu"] for call in fused)
    assert [call["scale"] is not None for call in fused] == [False, True, False, False, False, False]
    assert plain == ["silu"]  # of the embedding, which one of the blocks has

    model = drawn(Block(False))
    fastdiff.accelerate(model)
    with monkeypatch.context() as patch:
        fused, _ = calls(patch, model, (X, EMB))
    assert [call["add"] is not None for call in fused] == [False, True]
    model(X)  # without an embedding, another graph
    with monkeypatch.context() as patch:
        fused, _ = calls(patch, model, (X,))
    assert [call["add"] is not None for call in fused] == [False, False]


def test_hooks_are_kept():
    model, seen = drawn(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.SiLU())), []
    model[1].register_forward_hook(lambda module, args, output: seen.append("norm"))
    report = fastdiff.accelerate(model)
    assert [str(site) for site in report.left] == ["left      1: GroupNorm (it has hooks)"]
    model(X)
    assert seen == ["norm"]

    model, seen = drawn(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.SiLU())), []
    model[0].register_forward_hook(lambda module, args, output: seen.append("conv"))
    model[2].register_forward_hook(lambda module, args, output: seen.append("silu"))
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm"
    model(X)
    assert seen == ["conv", "silu"]


LATE = {
    "Sequential": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.SiLU()),
    "block": lambda: Block(False),
}


@pytest.mark.parametrize("make", LATE.values(), ids=LATE)
def test_hooks_of_later_are_called(make):
    """Also those of modules whose work an op does by now; of a copy those that are the copy's."""
    model, seen = drawn(make()), []
    fastdiff.accelerate(model)
    expected, other = model(X), copy.deepcopy(model)
    norm = next(m for m in model.modules() if isinstance(m, nn.GroupNorm))
    silu = next(m for m in model.modules() if isinstance(m, nn.SiLU))
    handles = [m.register_forward_hook(lambda module, *_: seen.append(module)) for m in (norm, silu)]
    torch.testing.assert_close(model(X), expected)
    assert {norm, silu} == set(seen)
    count = len(seen)
    other(X)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(X), expected) and len(seen) == count


def test_half_precision_and_autocast():
    model = drawn(Block(True))
    expected = model(X, EMB)
    fastdiff.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(X, EMB)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    found = model.bfloat16()(X.bfloat16(), EMB.bfloat16())
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.slow
def test_it_compiles():
    model = drawn(Block(True))
    expected = model(X, EMB)
    fastdiff.accelerate(model)
    model(X, EMB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_near(torch.compile(model)(X, EMB), expected)


