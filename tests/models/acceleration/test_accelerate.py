"""The same numbers, gradients, weights and copies as before, by fewer operations; and all of it undone."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff
from fastdiff import ops

from .foreign import Block, Classic, Functional, GroupNorm32, Net, OpenAIBlock, Spatial, drawn, image

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


def gradients(model, args):
    args = tuple(arg.detach().clone().requires_grad_() for arg in args)
    model.zero_grad(set_to_none=True)
    model(*args).square().sum().backward()
    return [value.grad.clone() for value in (*args, *model.parameters()) if value.grad is not None]


def assert_near(found, expected):
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=tolerance)


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


def test_training_and_evaluation_differ_by_dropout():
    model = drawn(Block(False))
    fastdiff.accelerate(model)
    assert torch.equal(model(X, EMB), model(X, EMB))
    model.train()
    assert not torch.equal(model(X, EMB), model(X, EMB))
    model.eval()
    assert torch.equal(model(X, emb=EMB), model(X, EMB))  # by name, the same graph's numbers


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


def test_checkpointing_is_kept():
    """No graph holds it: such a block keeps its forward, and its norms are replaced one by one."""
    model = drawn(OpenAIBlock(8, 12, 16, True, checkpointed=True))
    expected = gradients(model, (X, EMB))
    report = fastdiff.accelerate(model)
    assert "cannot be traced: it calls an autograd.Function or a checkpoint" in report.sites[1].reason
    for found, wanted in zip(gradients(model, (X, EMB)), expected, strict=True):
        assert_near(found, wanted)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(4, 8), nn.SiLU()


class Deciding(Normed):
    def forward(self, x):
        return self.act(self.norm(x)) if x.sum() > 0 else x


class UnderAutocast(Normed):
    def forward(self, x):
        return self.inner(x)

    def inner(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.act(self.norm(x))


class Constant(Normed):
    def forward(self, x):
        return self.act(self.norm(x)) + torch.ones(1)


class Asking(Normed):
    """It asks for what it is given: a tensor of four dimensions."""

    def forward(self, x):
        y = self.act(self.norm(x)) if isinstance(x, torch.Tensor) else x
        return y * 3 if len(x.shape) == x.dim() == x.ndim == 4 else y

    @torch.no_grad()
    def sample(self, x):
        return self.forward(x)


@pytest.mark.parametrize("kind, reason", [
    (Deciding, "symbolically traced variables cannot be used as inputs to control flow"),
    (UnderAutocast, "it uses autocast"),
    (Constant, "it makes a tensor that depends on none of its arguments"),
])  # fmt: skip
def test_what_cannot_be_traced_says_why(kind, reason):
    model = drawn(nn.Sequential(nn.Conv2d(8, 8, 1), kind()))
    expected = model(X)
    report = fastdiff.accelerate(model)
    assert [(site.kind, site.replaced) for site in report.sites] == [("GroupNorm", True)]
    assert reason in report.sites[0].reason
    assert_near(model(X), expected)
    assert not [name for name in vars(model[1]) if "constant" in name]


def test_a_tensor_is_seen_as_one():
    model = drawn(Asking())
    expected = model(X)
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm + SiLU"
    assert_near(model(X), expected)
    assert_near(model(X[:, :, 0]) * 3, fastdiff.restore(model) or model(X[:, :, 0]) * 3)


class Almost(nn.Module):
    """What looks like the pattern and is not: the norm's result is used twice, scale lacks its 1, SiLU is of a sum."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.norm, self.act = kind, nn.GroupNorm(4, 8), nn.SiLU()

    def forward(self, x, scale):
        h = self.norm(x)
        if self.kind == "twice":
            return self.act(h) + h
        if self.kind == "no 1":
            return self.act(h * scale + scale)
        if self.kind == "2":
            return self.act(h * (2 + scale) + scale)
        return self.act(h + scale)


@pytest.mark.parametrize("kind", ["twice", "no 1", "2", "a sum"])
def test_what_is_almost_the_pattern(kind):
    model, args = drawn(Almost(kind)), (X, image(2, 8, 1, 1))
    expected = model(*args)
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm"
    assert_near(model(*args), expected)


def test_a_sum_that_others_see_is_left():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(4, 8)

        def forward(self, x, emb):
            h = x + emb
            return h + F.silu(self.norm(h))

    model, args = drawn(Residual()), (X, image(2, 8, 1, 1))
    expected = model(*args)
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm + SiLU"
    assert_near(model(*args), expected)


def test_channels_last_and_back():
    model = drawn(Net(False))
    args = (image(2, 3, 6, 5), T)
    expected = model(*args)
    report = fastdiff.accelerate(model, channels_last=True)
    weight = model.blocks[0].conv_1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    output = model(*args)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_near(output.contiguous(), expected)
    report.undo()
    assert model.blocks[0].conv_1.weight.is_contiguous()


def test_a_probe_is_compared():
    model = drawn(Net(True)).train()
    report = fastdiff.accelerate(model, probe=(image(2, 3, 6, 5), T))
    assert 0 < report.error < 1e-4 and model.training and model.blocks[0].drop.training
    assert str(report).startswith("6 of 6 norms replaced, the probe's output within ")
    assert "\n  replaced  blocks.0.norm_1: GroupNorm + SiLU" in str(report)


def test_a_probe_that_differs_undoes_all(monkeypatch):
    from fastdiff.models.acceleration import kernels

    monkeypatch.setattr(kernels.ops, "group_norm_silu", lambda x, *args, **options: x)
    model = drawn(Net(True))
    with pytest.raises(ValueError, match=r"probe must give its output of before within 0\.0001, got"):
        fastdiff.accelerate(model, probe=(image(2, 3, 6, 5), T))
    assert type(model.blocks[0]) is Block and type(model.norm_out) is nn.GroupNorm


def test_twice_is_as_once_and_restore_undoes():
    model = drawn(Net(True))
    first, second = fastdiff.accelerate(model), fastdiff.accelerate(model)
    assert first.sites == second.sites
    fastdiff.restore(model)
    norms = {type(module) for module in model.modules() if "Norm" in type(module).__name__}
    assert norms == {nn.GroupNorm, GroupNorm32}


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


def test_nothing_to_do():
    assert str(fastdiff.accelerate(nn.Linear(2, 2))) == "0 of 0 norms replaced"


@pytest.mark.parametrize("call, message", [
    (lambda: fastdiff.accelerate(len), "module must be a torch.nn.Module, got builtin_function_or_method"),
    (lambda: fastdiff.accelerate(nn.Linear(1, 1), probe=X), "probe must be a tuple of the network's arguments"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.slow
def test_it_compiles():
    model = drawn(Block(True))
    expected = model(X, EMB)
    fastdiff.accelerate(model)
    model(X, EMB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_near(torch.compile(model)(X, EMB), expected)


def test_numbers_that_are_others_in_each_call():
    """A graph for each, up to a point; then the forward itself."""

    class Scaled(Normed):
        def forward(self, x, factor=1.0):
            return self.act(self.norm(x)) * factor

    model = drawn(Scaled())
    fastdiff.accelerate(model)
    for factor in range(100):
        assert_near(model(X, factor / 7), F.silu(model.norm(X)) * (factor / 7))
    cell = next(c.cell_contents for c in type(model).forward.__closure__ if hasattr(c.cell_contents, "functions"))
    assert len(cell.functions) == 32
