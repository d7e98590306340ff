"""What every op promises torch: opcheck, whole compilation, refusals where there is no derivative."""

import pytest
import torch
from torch.autograd import forward_ad

import fastdiff
from fastdiff import ops
from fastdiff.ops import rng
from tests.ops.accuracy import same_bits
from tests.ops.test_reverse_step import DDPM, table

X = torch.randn(2, 4, 3, 5)
IDS = torch.arange(2)
KEY = rng.make_rng(1, 2)
ALPHA = torch.linspace(1, 0.1, 10)
SIGMA = (1 - ALPHA**2).sqrt()
ROWS = table(DDPM, DDPM)
T = torch.tensor([0, 9])
ROW = torch.tensor(0)
TABLE = torch.rand(10, 8)
FIXED = TABLE * (torch.arange(8) != 6)  # no learned variance


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


NO_OPTIONS = (None,) * 12
INPUT, HISTORY = torch.empty(4, 4, 3, 5), torch.zeros(3, 2, 4, 3, 5)
REVERSE = (ROWS, ROW[None], INPUT, HISTORY, None, KEY, IDS, *(None,) * 7, "reference")
OPCHECKS = {
    "normal": ("normal", ((2, 4, 3, 5), KEY, IDS, 0, torch.float32, False, "reference")),
    "normal, channels last": ("normal", ((2, 4, 3, 5), KEY, IDS, 0, torch.bfloat16, True, "")),
    "q_sample": ("q_sample", (X, T, ALPHA, SIGMA, None, KEY, IDS, None, 3, torch.float32, False, True, "reference")),
    "q_sample, noise given": (
        "q_sample", (last(X), T, ALPHA, SIGMA, X, None, None, None, 3, torch.half, True, False, ""),
    ),
    "reverse_step_": ("reverse_step_", (X.clone(), X, *REVERSE)),
    "reverse_step_, bare": ("reverse_step_", (X.clone(), X, table({**DDPM, "std": 0.0}), ROW[None], *NO_OPTIONS, "")),
    "reverse_step_out": ("reverse_step_out", (last(X), X, last(X).clone(), *REVERSE)),
    "group_norm_silu": (
        "group_norm_silu",
        (X.clone().requires_grad_(), torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True),
         torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True), torch.randn(2, 4), None, None,
         None, 2, 1e-5, True, 0.0, 0, ""),
    ),
    "group_norm_silu, dropout and residual": (
        "group_norm_silu",
        (X.clone().requires_grad_(), torch.randn(4, requires_grad=True), None, None, None, None,
         torch.randn_like(X).requires_grad_(), KEY, IDS, 2, 1e-5, True, 0.3, 1, ""),
    ),
    "group_norm_silu, bare": (
        "group_norm_silu",
        (last(X).clone(), None, None, None, None, None, None, None, None, 2, 1e-5, False, 0.0, 0, "reference"),
    ),
    "rms_norm_silu": (
        "rms_norm_silu",
        (X.clone().requires_grad_(), torch.randn(4, requires_grad=True), torch.randn(2, 4, requires_grad=True),
         torch.randn(2, 4), 0.0, 1e-12, True, ""),
    ),
    "rms_norm_silu, bare": ("rms_norm_silu", (last(X).clone(), None, None, None, 1e-6, 0.0, False, "reference")),
    "rms_norm_silu_backward": (
        "rms_norm_silu_backward", (X, X, torch.ones(4), None, None, 0.0, 1e-12, True, [True, True, False, False], ""),
    ),
    "rms_norm_silu_backward, transposed rows": (
        "rms_norm_silu_backward",
        (X[..., 0, 0], torch.randn(4, 2).t(), None, None, None, 0.0, 1e-12, True, [True, False, False, False], ""),
    ),
    "group_norm_silu_backward, transposed rows": (
        "group_norm_silu_backward",
        (X[..., 0, 0], torch.randn(4, 2).t(), torch.zeros(2, 2), torch.ones(2, 2), *(None,) * 7, 2, True, 0.0, 0,
         [True, *(False,) * 5], ""),
    ),
    "group_norm_silu_backward": (
        "group_norm_silu_backward",
        (X, X, torch.zeros(2, 2), torch.ones(2, 2), torch.ones(4), None, None, None, None, KEY, IDS, 2, True, 0.3, 1,
         [True, True, False, False, False, False], ""),
    ),
    "diffusion_loss": (
        "diffusion_loss",
        (X.clone().requires_grad_(), X[:, :2], T, ALPHA, SIGMA, None, KEY, IDS, torch.tensor([True, False]), ALPHA,
         SIGMA[:2], 3, ""),
    ),
    "diffusion_loss, bare": (
        "diffusion_loss", (last(X).clone(), X, T, ALPHA, SIGMA, X, None, None, None, None, None, 3, "reference"),
    ),
    "diffusion_loss_backward": (
        "diffusion_loss_backward", (SIGMA[:2], last(X), X, T, ALPHA, SIGMA, X, *(None,) * 5, 3, ""),
    ),
    "vlb_terms": (
        "vlb_terms",
        (X.clone().requires_grad_(), X[:, :2], X[:, :2], T, TABLE, None, ALPHA, None, 1.0, True, True, ""),
    ),
    "vlb_terms, bare": (
        "vlb_terms", (last(X).clone(), X, X, T, FIXED, None, None, None, float("inf"), False, False, "reference"),
    ),
    "vlb_terms_backward": (
        "vlb_terms_backward", (SIGMA[:2], last(X), X, X, T, FIXED, None, None, None, 1.0, False, False, ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), OPCHECKS.values(), ids=OPCHECKS)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastdiff, name).default, arguments)


def q_sample(x):
    return ops.q_sample(x, T, ALPHA, SIGMA, rng=KEY, sample_ids=IDS, return_noise=True)


def reverse_step(x):
    model_input = torch.empty((2, 4, 3, 5), dtype=torch.bfloat16)
    y = ops.reverse_step(x, x * 2, ROWS, ROW, rng=KEY, sample_ids=IDS, model_input=model_input)
    return y, model_input


def reverse_step_in_place(x):
    state = x * 1
    ops.reverse_step(state, x * 2, ROWS, ROW, out=state, rng=KEY, sample_ids=IDS)
    return state + 1


def group_norm_silu(x):
    return ops.group_norm_silu(x, 2, torch.ones(4), torch.zeros(4), add=torch.ones(2, 4))


def diffusion_loss(x):
    return ops.diffusion_loss(x, x.detach() * 0.5, T, ALPHA, SIGMA, rng=KEY, sample_ids=IDS)


def vlb_terms(x):
    return ops.vlb_terms(x, x.detach()[:, :2] * 0.5, x.detach()[:, 2:], T, TABLE, detach_mean=True)


def group_norm_silu_with_dropout(x):
    return ops.group_norm_silu(x, 2, torch.ones(4), dropout=0.3, rng=KEY, sample_ids=IDS, layer=2, residual=2 * x)


def rms_norm_silu(x):
    return ops.rms_norm_silu(x, torch.ones(4), scale=torch.ones(2, 4))


def normal(x):
    return x + ops.normal(x.shape, KEY, IDS)


DIFFERENTIABLE = [group_norm_silu, group_norm_silu_with_dropout, rms_norm_silu, diffusion_loss, vlb_terms]
FUNCTIONS = [normal, q_sample, reverse_step, reverse_step_in_place, *DIFFERENTIABLE]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_compiles_whole(function, backend, monkeypatch):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    if backend == "auto":
        expected, result = function(X), compiled(X)
    else:
        with fastdiff.use_backend(backend):
            expected, result = function(X), compiled(X)
    for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (expected, result)), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("function", DIFFERENTIABLE, ids=lambda function: function.__name__)
def test_compiled_gradients_are_the_eager_ones(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    gradients = []
    for each in (function, compiled):
        x = X.clone().requires_grad_()
        each(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_compiled_code_follows_use_backend():
    torch._dynamo.reset()
    seen = []
    original = ops._dispatch._function

    def spy(op, backend, *rest):
        seen.append(backend)
        return original(op, backend, *rest)

    ops._dispatch._function = spy
    try:
        compiled = torch.compile(normal, fullgraph=True, backend="aot_eager")
        compiled(X)
        with fastdiff.use_backend("reference"):
            compiled(X)
        compiled(X)
    finally:
        ops._dispatch._function = original
    assert seen == ["", "reference", ""]


def test_compiles_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.group_norm_silu(x, 2), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (3, 5, 8):
        x = torch.randn(2, 4, size, size + 1)
        assert same_bits(compiled(x), ops.group_norm_silu(x, 2))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore")
def test_traces(function):
    """torch.jit.trace records the op, not the empty memory that the quick way past the dispatcher fills."""
    traced, other = torch.jit.trace(function, (X,), check_trace=False), X.flip(1)
    for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (function(other), traced(other))), strict=True):
        assert same_bits(a, b)


def test_fake_tensors_pass_through():
    from torch._subclasses.fake_tensor import FakeTensorMode

    source = last(X)
    with FakeTensorMode() as mode:
        x = mode.from_tensor(source)
        y = ops.group_norm_silu(x, 2)
    assert y.shape == X.shape and y.stride() == last(X).stride()


@pytest.mark.parametrize("name", ["x_start", "noise"])
def test_q_sample_refuses_gradients(name):
    arguments = dict(x_start=X, t=T, alpha=ALPHA, sigma=SIGMA, noise=X)
    arguments[name] = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=f"{name} must not require grad"):
        ops.q_sample(**arguments)
    with torch.no_grad():
        ops.q_sample(**arguments)


@pytest.mark.parametrize("name", ["x", "model_output", "noise", "extra", "history"])
def test_reverse_step_refuses_gradients(name):
    arguments = dict(x=X, model_output=X, rows=ROWS, row=ROW, noise=X)
    arguments[name] = (torch.zeros(3, *X.shape) if name == "history" else X.clone()).requires_grad_()
    with pytest.raises(RuntimeError, match=f"{name} must not require grad"):
        ops.reverse_step(**arguments)


def test_forward_mode_raises():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(NotImplementedError, match="x must not carry a tangent"):
            ops.group_norm_silu(dual, 2)
        with pytest.raises(NotImplementedError, match="residual must not carry a tangent"):
            ops.group_norm_silu(X, 2, residual=dual)
        with pytest.raises(NotImplementedError, match="x must not carry a tangent"):
            ops.rms_norm_silu(dual)
        with pytest.raises(NotImplementedError, match="x_start must not carry a tangent"):
            ops.q_sample(dual, T, ALPHA, SIGMA, X)
        with pytest.raises(NotImplementedError, match="model_output must not carry a tangent"):
            diffusion_loss(dual)
        with pytest.raises(NotImplementedError, match="x_t must not carry a tangent"):
            ops.vlb_terms(X, X, dual, T, FIXED)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("function", DIFFERENTIABLE, ids=lambda function: function.__name__)
def test_double_backward_raises(function, compiled):
    torch._dynamo.reset()
    function = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    x = X.clone().requires_grad_()
    with pytest.raises((RuntimeError, NotImplementedError), match=r"once|double backward"):
        (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        gradient.sum().backward()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("function", DIFFERENTIABLE, ids=lambda function: function.__name__)
def test_a_second_derivative_is_not_that_of_the_rest(function, checkpointed):
    """Where x has another way to the first one, whatever is asked of it and how."""
    x = X.clone().requires_grad_()
    y = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False) if checkpointed else function(x)
    (gradient,) = torch.autograd.grad(y.sum() + x.pow(3).sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(function(x).sum() + x.pow(3).sum(), x)
    assert torch.equal(gradient, plain)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop():
    x = torch.randn(3, 2, 4, 3, 5)
    together = torch.vmap(lambda x: ops.group_norm_silu(x, 2))(x)
    assert same_bits(together, torch.stack([ops.group_norm_silu(each, 2) for each in x]))


def test_inference_mode():
    with torch.inference_mode():
        x = X.clone()
        ops.reverse_step(x, X, ROWS, ROW, out=x, rng=KEY, sample_ids=IDS)
        assert x.isfinite().all() and ops.group_norm_silu(x, 2).is_inference()


def test_autocast_leaves_dtypes_alone():
    filters = torch.randn(3, 4, 3, 3)
    exact = ops.conv3x3(X, filters)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits(ops.conv3x3(X, filters), exact)
        options = *(None,) * 3, 0, None, None, 0.0, None, None, False, ""
        assert same_bits(torch.ops.fastdiff.conv3x3(X, filters, *options), exact)
        assert ops.group_norm_silu(X, 2, torch.ones(4)).dtype is torch.float32
        assert ops.group_norm_silu(X.bfloat16(), 2, torch.ones(4)).dtype is torch.bfloat16


@pytest.mark.gpu
def test_another_device_and_stream():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    x, stream = X.to(device), torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        y = ops.group_norm_silu(x, 2)
        n = ops.normal(X.shape, KEY.to(device), IDS.to(device))
    stream.synchronize()
    assert torch.allclose(y.cpu(), ops.group_norm_silu(X, 2), atol=1e-5)
    assert torch.allclose(n.cpu(), ops.normal(X.shape, KEY, IDS), atol=1e-5)
    assert torch.cuda.current_device() == 0
