"""Which forwards are followed, what in them is the pattern, and what only looks like it."""

import concurrent.futures
import copy
import logging
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastdiff

from .foreign import Block, Net, OpenAIBlock, assert_near, drawn, gradients, image

X, EMB = image(2, 8, 6, 5), image(2, 16)


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


class Decorated(Normed):
    @torch.no_grad()
    def forward(self, x):
        return self.act(self.norm(x))


class Constant(Normed):
    def forward(self, x):
        return self.act(self.norm(x)) + torch.ones(1)


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class OfFunction(Normed):
    """As OpenAI's attention, which is checkpointed by a Function of its own."""

    def forward(self, x):
        return self.act(self.norm(Same.apply(x)))


def centred(x):
    with torch.no_grad():
        return x - x.mean()


class UnderNoGradElsewhere(Normed):
    def forward(self, x):
        return self.act(self.norm(x)) + centred(x)


class Counting(Normed):
    count = 0

    def forward(self, x):
        self.count += 1
        return self.act(self.norm(x))


class Keeping(Normed):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.norm(x))
        return self.act(self.seen[-1])


class Skipping(Normed):
    """Stochastic depth by one generator or another."""

    def forward(self, x):
        return x if torch.rand(1).item() + random.random() < 0.5 else self.act(self.norm(x))


class InItsDtype(Normed):
    def forward(self, x):
        return self.act(self.norm(x.to(next(self.parameters()).dtype)))


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
    (Decorated, "it uses a decorator"),
    (Constant, "it makes a tensor that depends on none of its arguments"),
    (OfFunction, "it calls an autograd.Function or a checkpoint"),
    (UnderNoGradElsewhere, "it uses no_grad"),
    (Counting, "it changes count of its module"),
    (Keeping, "it changes seen of its module"),
    (Skipping, "it draws random numbers beside its tensors"),
    (InItsDtype, "it lists its parameters"),
])  # fmt: skip
def test_what_cannot_be_traced_says_why(kind, reason):
    model = drawn(nn.Sequential(nn.Conv2d(8, 8, 1), kind()))
    draws = torch.get_rng_state(), random.getstate()
    expected = model(X)
    torch.set_rng_state(draws[0])
    random.setstate(draws[1])
    report = fastdiff.accelerate(model)
    assert [(site.kind, site.replaced) for site in report.sites] == [("GroupNorm", True)]
    assert reason in report.sites[0].reason
    assert_near(model(X), expected)
    assert getattr(model[1], "count", 2) == len(getattr(model[1], "seen", "ab")) == 2
    assert not [name for name in vars(model[1]) if "constant" in name]


class Clamping(Normed):
    """What the norm read is another by the time of the SiLU."""

    def forward(self, x):
        x = x.clone()
        h = self.norm(x)
        x.clamp_(0)
        return self.act(h)


class Adding(Normed):
    """It writes into what it is given."""

    def forward(self, x):
        x += 1
        return self.act(self.norm(x))


class AddingToItsOwn(Normed):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x, other):
        h = self.conv(x)
        h += other
        return self.act(self.norm(h))


@pytest.mark.parametrize("kind, args, found", [
    (Clamping, (X,), "GroupNorm"),
    (Adding, (X,), "GroupNorm + SiLU"),
    (AddingToItsOwn, (X, image(2, 8, 1, 1)), "add + GroupNorm + SiLU"),
])  # fmt: skip
def test_what_is_written_in_place_is_read_as_it_was(kind, args, found):
    model = drawn(kind())
    given = [arg.clone() for arg in args]
    expected = model(*given)
    assert fastdiff.accelerate(model).sites[0].kind == found
    again = [arg.clone() for arg in args]
    assert_near(model(*again), expected)
    assert all(torch.equal(a, b) for a, b in zip(again, given, strict=True))


class OtherEps(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, 0.5).type(x.dtype)


class Weightless(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x.float(), self.num_groups, eps=self.eps).type(x.dtype)


class Widening(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize("kind", [OtherEps, Weightless, Widening])
def test_a_group_norm_of_other_numbers_than_its_own_is_left(kind):
    model = drawn(nn.Sequential(kind(4, 8), nn.SiLU()))
    expected = model(X)
    fastdiff.accelerate(model)
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("later", [False, True])
def test_a_forward_of_one_module_alone_is_called(later):
    """As those that Hugging Face's accelerate puts before the ones of classes."""
    model = drawn(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.SiLU()))
    if later:
        fastdiff.accelerate(model)
        model(X)
    model[1].forward = lambda x: 3 * x
    if not later:
        report = fastdiff.accelerate(model)
        assert [site.reason for site in report.left] == ["it has a forward that its class has not"]
    assert_near(model(X), F.silu(3 * model[0](X)))


def test_the_norms_of_a_module_with_a_forward_of_its_own_are_replaced_by_themselves():
    model = drawn(Asking())
    model.forward = lambda x: model.norm(x)
    expected = model(X)
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm"
    assert_near(model(X), expected)


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


def test_checkpointing_is_kept():
    """No graph holds it: such a block keeps its forward, and its norms are replaced one by one."""
    model = drawn(OpenAIBlock(8, 12, 16, True, checkpointed=True))
    expected = gradients(model, (X, EMB))
    report = fastdiff.accelerate(model)
    assert "cannot be traced: it calls an autograd.Function or a checkpoint" in report.sites[1].reason
    for found, wanted in zip(gradients(model, (X, EMB)), expected, strict=True):
        assert_near(found, wanted)


def test_training_and_evaluation_differ_by_dropout():
    model = drawn(Block(False))
    fastdiff.accelerate(model)
    assert torch.equal(model(X, EMB), model(X, EMB))
    model.train()
    assert not torch.equal(model(X, EMB), model(X, EMB))
    model.eval()
    assert torch.equal(model(X, emb=EMB), model(X, EMB))  # by name, the same graph's numbers


def test_numbers_that_are_others_in_each_call():
    """A graph for each, up to a point; then the forward itself."""

    class Scaled(Normed):
        def forward(self, x, factor=1.0):
            return self.act(self.norm(x)) * factor

    model = drawn(Scaled())
    fastdiff.accelerate(model)
    for factor in range(100):
        assert_near(model(X, factor / 7), F.silu(model.norm(X)) * (factor / 7))
    cell = next(c.cell_contents for c in type(model).forward.__closure__ if hasattr(c.cell_contents, "graphs"))
    assert len(cell.graphs[model.training][model].functions) == 32


def test_a_first_call_under_a_transform_or_mode_is_not_kept(monkeypatch):
    model = drawn(Asking())
    expected = torch.func.grad(lambda x: model(x).sum())(X)
    fastdiff.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_near(torch.func.grad(lambda x: model(x).sum())(X), expected)
        with FlopCounterMode(display=False):
            model(X)
    calls = []
    monkeypatch.setattr(nn.SiLU, "forward", lambda module, x: calls.append(x) or F.silu(x))
    model(X)
    assert not calls


class Gained(Normed):
    gain = 1.0

    def forward(self, x):
        return self.act(self.norm(x)) * self.gain


def test_attributes_and_modules_that_are_set_later():
    """Those of a deep copy are its own."""
    model = drawn(Gained())
    fastdiff.accelerate(model)
    expected, other = model(X), copy.deepcopy(model)
    model.gain = 3.0
    assert_near(model(X), 3 * expected)
    assert_near(other(X), expected)
    model.act = nn.Identity()
    assert_near(model(X), 3 * model.norm(X))
    for gain in range(100):
        model.gain = gain / 7
        assert_near(model(X), model.norm(X) * (gain / 7))
    assert_near(other(X), expected)


class Mode(Normed):
    """Another function in training, and in a forward whose gradient is wanted."""

    def forward(self, x):
        h = self.act(self.norm(x))
        h = 2 * h if self.training else h
        return 3 * h if torch.is_grad_enabled() else h


def test_the_mode_is_looked_at_in_each_call():
    model = drawn(Mode())
    expected = F.silu(model.norm(X))
    fastdiff.accelerate(model)
    assert_near(model(X), 3 * expected)
    assert_near(model.train()(X), 6 * expected)
    with torch.no_grad():
        assert_near(model(X), 2 * expected)
        assert_near(model.eval()(X), expected)


class Two(Normed):
    """Norm and SiLU in two statements, where no graph can follow, of a norm that may be None."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            if self.norm:
                x = self.norm(x)
                x = self.act(x)
        return x


class TwoAndMore(Normed):
    """One that uses the norm once more."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.norm(x)
            x = self.act(x)
        return x * self.norm.eps


class TwoAndElsewhere(Normed):
    """One that has another use for the activation."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.norm(x)
            x = self.act(x)
        return self.end(x)

    def end(self, x):
        return self.act(x)


@pytest.mark.parametrize("kind, found", [
    (Two, "GroupNorm + SiLU"), (TwoAndMore, "GroupNorm"), (TwoAndElsewhere, "GroupNorm"),
])  # fmt: skip
def test_to_ask_for_a_norm_is_no_use_of_it(kind, found):
    model = drawn(kind())
    expected = model(X)
    assert fastdiff.accelerate(model).sites[0].kind == found
    assert_near(model(X), expected)


class Logging(Normed):
    def forward(self, x):
        logging.getLogger("foreign").warning("x is %s", type(x).__name__)
        return self.act(self.norm(x))


def test_tracing_logs_nothing(caplog):
    model = drawn(Logging())
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm + SiLU" and not caplog.records
    logging.getLogger("foreign").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_a_silu_that_others_hold_is_left():
    """Norm and SiLU of two statements, in a forward that is not followed, are one op if nobody else has the SiLU."""
    model, args = drawn(Net(False)), (image(2, 3, 6, 5), torch.tensor([3.0, 500.0]))
    model.out[2] = model.act_out
    expected = model(*args)
    kinds = {site.path: site.kind for site in fastdiff.accelerate(model).sites}
    assert kinds["norm_out"] == "GroupNorm" and kinds["out.1"] == "GroupNorm + SiLU"
    assert_near(model(*args), expected)


class Choosing(Normed):
    """A forward that a first kind of argument lets be followed, and another does not."""

    def forward(self, x, threshold=None):
        if threshold is not None and x.mean() > threshold:
            return x
        return self.act(self.norm(x))


def test_a_call_that_cannot_be_followed_says_so_once():
    model = drawn(Choosing())
    expected = model(X, -10.0), model(X, 10.0)
    assert fastdiff.accelerate(model).sites[0].kind == "GroupNorm + SiLU"
    with pytest.warns(RuntimeWarning, match=r"Choosing\.forward keeps its own norms for such arguments: symbolically"):
        assert torch.equal(model(X, -10.0), expected[0])
    with pytest.warns(RuntimeWarning):  # another number, another kind
        assert_near(model(X, 10.0), expected[1])
    assert torch.equal(model(X, -10.0), expected[0])


def test_attributes_of_a_graph_module_are_kept():
    """A module that itself came out of torch.fx has constants by the tracer's names."""
    model = drawn(Constant())
    traced = torch.fx.symbolic_trace(model)
    names = [name for name in dir(traced) if name.startswith("_tensor_constant")]
    expected = traced(X)
    fastdiff.accelerate(traced)
    assert names and names == [name for name in dir(traced) if name.startswith("_tensor_constant")]
    assert_near(traced(X), expected)


def test_threads_do_not_trace():
    """DataParallel calls from threads, and tracing is the whole process's."""
    model = drawn(Block(False))
    expected = model(X, EMB)
    fastdiff.accelerate(model)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: model(X, EMB), range(8)):
            assert_near(found, expected)
    assert_near(model(X, EMB), expected)
