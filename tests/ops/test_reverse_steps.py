"""A run's rows on the same tensors: the bits of `reverse_step`, and all of its refusals."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import ops
from fastdiff.ops import reverse_steps, rng
from tests.ops.test_reverse_step import table

B, C, ROWS = 3, 4, 5
IDS = torch.arange(10, 10 + B)
FORMATS = [torch.contiguous_format, torch.channels_last]
ROW = table(*(
    {"p_x": 1.1, "p_m": -0.5, "bound": 1.0, "c_x": 0.4, "c_0": 0.5, "c_1": 0.2 * (row > 0), "write": 0.0, "q_0": 1.0,
     "std": 0.3, "c_in": 0.7, "k_0": 0.9, "k_n": 0.1}
    for row in range(ROWS)
))  # fmt: skip


def state(memory_format=torch.contiguous_format, seed=0):
    x = torch.randn(B, C, 3, 5, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=memory_format)


def places():
    places = torch.arange(ROWS)[:, None].repeat(1, 4)
    places[:, 0] = rng.make_rng(7)[0]
    return {"row": places[:, 2:3], "rng": places[:, :2]}


def options(memory_format, masked):
    history = torch.zeros(3 * B, C, 3, 5).contiguous(memory_format=memory_format).unflatten(0, (3, B))
    given = {"sample_ids": IDS, "history": history, "model_input": state(memory_format)}
    return {**given, "mask": torch.eye(3, 5).repeat(1, C, 1, 1), "known": state(memory_format, 2)} if masked else given


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def whole(monkeypatch):
    """The calls that went to the op."""
    calls = []
    monkeypatch.setattr(reverse_steps, "reverse_step", lambda *a, **k: (calls.append(k), ops.reverse_step(*a, **k))[1])
    return calls


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_rows_have_the_bits_of_the_op(backend, memory_format, masked, whole):
    outputs = [state(memory_format, seed) for seed in range(1, 1 + ROWS)]
    x, kept = state(memory_format), options(memory_format, masked)
    steps = ops.ReverseSteps(x, ROW, **places(), **kept)
    other, others = state(memory_format), options(memory_format, masked)
    for i, output in enumerate(outputs):
        steps(output, i)
        ops.reverse_step(other, output, ROW, torch.tensor(i), out=other, rng=rng.make_rng(7, i), **others)
        assert torch.equal(x, other) and torch.equal(kept["history"], others["history"])
        assert torch.equal(kept["model_input"], others["model_input"])
    converted = masked and memory_format is torch.channels_last  # the mask, for each row
    native = backend.startswith(("cpu", "cuda"))
    assert len(whole) == (1 if native and not converted else ROWS)


@pytest.fixture
def begun(whole):
    """(steps after their first call, the state)."""
    x = state()
    steps = ops.ReverseSteps(x, ROW, **places(), **options(torch.contiguous_format, False))
    steps(state(seed=1), 0)
    assert len(whole) == 1
    return steps, x


@pytest.mark.parametrize("output, message", [
    (torch.zeros(B, C + 1, 3, 5), r"model_output must have shape \[B or 2B, C or 2C, \*\]"),
    (torch.zeros(B, C, 3, 5, dtype=torch.int32), "model_output must be float32, .* got torch.int32"),
    (torch.zeros(B, C, 3, 5, device="meta"), "model_output must be on cpu, got meta"),
])  # fmt: skip
def test_later_outputs_are_checked_too(begun, output, message):
    steps, x = begun
    before = x.clone()
    with pytest.raises(ValueError, match=message):
        steps(output, 1)
    assert torch.equal(x, before)
    steps(state(seed=2), 1)
    assert not torch.equal(x, before)


def test_an_output_that_overlaps_the_state_is_refused():
    memory = torch.zeros(B * C * 15 + 1)
    x, shifted = (part.view(B, C, 3, 5) for part in (memory[:-1], memory[1:]))
    steps = ops.ReverseSteps(x, ROW, **places(), **options(torch.contiguous_format, False))
    steps(state(), 0)
    steps(x, 1)  # the whole of it is no overlap
    with pytest.raises(ValueError, match="out must be model_output itself or disjoint from it"):
        steps(shifted, 2)


def test_outputs_of_other_strides_and_dtypes_are_converted(begun, whole):
    steps, x = begun
    last = state(seed=2).contiguous(memory_format=torch.channels_last)
    expected = x.clone()
    for i, output in ((1, last), (2, state(seed=3).double()), (3, None)):
        if output is None:
            with pytest.raises(ValueError, match="model_output must be a tensor where a row's p_m"):
                steps(None, i)
            continue
        kept = {"history": steps._written[1].clone(), "rng": rng.make_rng(7, i), "sample_ids": IDS}
        expected = ops.reverse_step(expected, output, ROW, torch.tensor(i), **kept)
        steps(output, i)
        assert torch.equal(x, expected)
    assert len(whole) == 4


def test_a_row_that_is_not_there_is_refused(begun):
    steps, x = begun
    before = x.clone()
    for i in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError):
            steps(state(seed=2), i)
    assert torch.equal(x, before)


def test_what_the_kernel_refuses_is_raised():
    x = state()
    row = torch.tensor([[0], [ROWS], [1]])
    steps = ops.ReverseSteps(x, ROW, row, places()["rng"], **options(torch.contiguous_format, False))
    steps(state(seed=1), 0)
    before = x.clone()
    with pytest.raises(IndexError, match=rf"row must be in \[0, {ROWS}\), got {ROWS}"):
        steps(state(seed=2), 1)
    assert torch.equal(x, before)


def test_a_mode_sees_the_op(begun):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
            seen.append(str(operation))
            return operation(*arguments, **(keywords or {}))

    with Mode():
        begun[0](state(seed=2), 1)
    assert "fastdiff.reverse_step_.default" in seen


def test_a_backend_asked_for_later_is_used(begun, whole):
    steps, _ = begun
    with ops.use_backend("reference"):
        steps(state(seed=2), 1)
        steps(state(seed=3), 2)
    steps(state(seed=4), 3)
    assert len(whole) == 4  # the reference backend checks every call
    steps(state(seed=4), 4)
    assert len(whole) == 4
    with ops.use_backend("cuda"), pytest.raises(ValueError, match="backend 'cuda' cannot run reverse_step"):
        steps(state(seed=5), 4)


def test_gradients_are_refused(begun):
    output = state(seed=2).requires_grad_()
    begun[0](output, 1)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="model_output must not require grad"):
        begun[0](output, 2)


def test_with_checks_that_read_every_call_is_whole(monkeypatch, whole):
    monkeypatch.setattr(reverse_steps._check, "SYNCHRONISE", True)
    x = state()
    steps = ops.ReverseSteps(x, ROW, **places(), **options(torch.contiguous_format, False))
    for i in range(3):
        steps(state(seed=i + 1), i)
    assert len(whole) == 3
