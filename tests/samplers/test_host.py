"""What a step costs the host: its torch calls, one graph on a device, one graph of the compiler."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, ops, schedules
from fastdiff.capture import Capture
from fastdiff.ops import reverse_steps, rng
from fastdiff.samplers import sampler
from fastdiff.samplers.run import Run
from tests.cuda_graphs import Cuda

from .cases import CASES, SHAPE, model


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(100))


@pytest.fixture(params=CASES)
def case(request, process):
    options, arguments, kinds = CASES[request.param]
    return Sampler(model, process, **{"steps": 12, **options}), arguments, kinds


# ---- CUDA graphs, by the stand-in ----


@pytest.fixture
def graphs(monkeypatch):
    """Samplers here believe in CUDA graphs on the CPU; the stand-ins that they used."""
    made = []

    def capture(step, device, **options):
        made.append(Cuda())
        return Capture(step, device, cuda=made[-1], **options)

    monkeypatch.setattr(sampler, "_has_graphs", lambda device: True)
    monkeypatch.setattr(sampler, "Capture", capture)
    return made


def test_a_replayed_run_has_the_bits_of_an_eager_one(backend, case, monkeypatch, request):
    sampler_, arguments, kinds = case
    sampler_.cuda_graph = False
    expected = sampler_.sample((7, *SHAPE[1:]), seed=5, sample_ids=range(20, 27), **_of_seven(arguments), batch_size=4)
    sampler_.cuda_graph, made = "auto", request.getfixturevalue("graphs")
    found = sampler_.sample((7, *SHAPE[1:]), seed=5, sample_ids=range(20, 27), **_of_seven(arguments), batch_size=4)
    assert torch.equal(found, expected)
    log = made[0].log
    assert len(made) == 1 and log.count("record on side") == kinds  # the second batch replays the first one's graphs
    assert log.count("on side") == 2 * kinds and log.count("replay") > len(sampler_.plan)


def _of_seven(arguments):
    condition = arguments.get("condition")
    return {**arguments, "condition": [*condition, 5, 6, 7]} if isinstance(condition, list) else arguments


def test_looking_at_a_replayed_run(process, graphs):
    sampler_ = Sampler(model, process, steps=12)
    replayed = list(sampler_.stream(SHAPE, seed=2))
    sampler_.cuda_graph = False
    for step, expected in zip(replayed, sampler_.stream(SHAPE, seed=2), strict=True):
        assert torch.equal(step.x, expected.x) and torch.equal(step.x0, expected.x0)
    assert len(graphs) == 1 and "replay" in graphs[0].log


def test_a_model_that_reads_runs_without_a_graph_and_says_so_once(process, graphs):
    def reading(x, t):
        return model(x, t) if t[0].item() >= 0 else None

    sampler_ = Sampler(reading, process, steps=5)
    with pytest.warns(RuntimeWarning, match="running without a CUDA graph: operation not permitted when stream"):
        found = sampler_.sample(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sampler_.sample(SHAPE), found) and len(graphs) == 1
    assert torch.equal(Sampler(model, process, steps=5, cuda_graph=False).sample(SHAPE), found)
    with pytest.raises(RuntimeError, match="cuda_graph must be False or 'auto' for this step, got True"):
        Sampler(reading, process, steps=5, cuda_graph=True).sample(SHAPE)


def test_graphs_need_a_gpu(process):
    with pytest.raises(ValueError, match="cuda_graph must be 'auto' or False on cpu, got True"):
        Sampler(model, process, steps=5, cuda_graph=True).sample(SHAPE)
    with pytest.raises(ValueError, match="cuda_graph must be 'auto', True or False, got 'maybe'"):
        Sampler(model, process, cuda_graph="maybe")


# ---- torch.compile ----


FOR_COMPILERS = [(name, "eager") for name in CASES if name != "classifier"] + [("guided in an interval", "aot_eager")]


@pytest.mark.parametrize("case, compiler", FOR_COMPILERS, indirect=["case"])
def test_a_compiled_step_has_no_graph_break(case, compiler):
    """But a classifier's, whose gradient leaves inference mode."""
    sampler_, arguments, kinds = case
    torch._dynamo.reset()
    expected = sampler_.sample(SHAPE, seed=5, **arguments)
    counter = CompileCounterWithBackend(compiler)
    sampler_.compile = {"fullgraph": True, "backend": counter}
    found = sampler_.sample(SHAPE, seed=5, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == kinds


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_network_compiled_with_its_step(process, compiler):
    """Inductor: as a user has it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    options = dict(image_size=8, channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), groups=4)
    net = UNet(UNetConfig(**options))
    for parameter in net.parameters():  # its last layer is born zero
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    expected = Sampler(net, process, steps=4, precision="fp32").sample(2)
    compiled = {"fullgraph": True, "backend": compiler}
    found = Sampler(net, process, steps=4, precision="fp32", compile=compiled).sample(2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_next_call_compiles_nothing_new(process):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    sampler_ = Sampler(model, process, steps=4, compile={"fullgraph": True, "backend": counter})
    for seed in range(3):
        sampler_.sample(SHAPE, seed=seed, batch_size=2)
    assert counter.frame_count == 1


def test_a_compiled_step_with_a_classifier(process):
    options, arguments, _ = CASES["classifier"]
    expected = Sampler(model, process, steps=4, **options).sample(SHAPE, **arguments)
    compiled = Sampler(model, process, steps=4, compile={"backend": "eager"}, **options)
    torch.testing.assert_close(compiled.sample(SHAPE, **arguments), expected, rtol=1e-5, atol=1e-5)


# ---- Torch calls of a step ----


class Calls(TorchDispatchMode):
    """Names of the operations, and how many bytes their new results take."""

    def __init__(self):
        super().__init__()
        self.names, self.allocated = [], 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        self.names.append(str(operation))
        returned = operation._schema.returns
        if isinstance(result, torch.Tensor) and returned and returned[0].alias_info is None:
            self.allocated += result.nbytes
        return result


HOST = ("_local_scalar_dense", "item", "_to_copy", "lift_fresh", "nonzero", "copy_")


def rows_of(sampler_, arguments, on_device):
    """The calls of each row of a run, the model's among them."""
    run = sampler_._run(SHAPE, **arguments)
    calls = []
    with sampler_._mode():
        for row in range(len(run.plan)):
            with Calls() as seen:
                run.row_on_device(run.kinds[row]) if on_device else run.row(row)
            calls.append(seen)
    return calls


def test_a_step_is_one_call_beside_the_model(process):
    """On a device that counts the rows, three."""
    output = torch.zeros(SHAPE)
    for on_device in (False, True):
        for calls in rows_of(Sampler(lambda x, t: output, process, steps=5), {}, on_device):
            ours = [name for name in calls.names if name not in ("aten.select.int", "aten.unbind.int")]  # views
            step = "fastdiff.reverse_step_.default"
            assert ours == (["aten.index_select.out", step, "aten.add_.Tensor"] if on_device else [step])
            assert calls.allocated == 0


def test_the_hosts_loop_checks_what_stays_the_same_once(process, monkeypatch):
    """The whole op runs in the first row alone, unless something changes."""
    output, whole = torch.zeros(SHAPE), []
    monkeypatch.setattr(reverse_steps, "reverse_step", lambda *a, **k: (whole.append(1), ops.reverse_step(*a, **k)))
    for solver in ("ddpm", "ddim", "dpmpp_2m", "unipc"):
        whole.clear()
        Sampler(lambda x, t: output, process, solver, 12).sample(SHAPE)
        assert len(whole) == 1


def test_no_step_reads_copies_or_converts(case):
    sampler_, arguments, _ = case
    for on_device in (False, True):
        for calls in rows_of(sampler_, arguments, on_device):
            found = [name for name in calls.names if name.split(".")[1] in HOST]
            own = 1 if any(sampler_.plan.adjusted) else 0  # a row's own copy, from device to device
            assert len(found) <= own and set(found) <= {"aten.copy_.default"}, found


def test_steps_allocate_the_same_whichever_the_row(case):
    sampler_, arguments, kinds = case
    assert len({calls.allocated for calls in rows_of(sampler_, arguments, False)}) <= kinds


def test_a_training_steps_ops_neither_read_nor_copy(process):
    images = torch.randint(0, 256, (4, 8, 4, 4), dtype=torch.uint8)
    t, counters, ids = torch.tensor([1, 5, 9, 99]), rng.make_rng(3, 7), torch.arange(4)
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    process.q_sample(images, t, rng=counters, sample_ids=ids, dtype=torch.float32)  # the tables are made once
    with Calls() as calls:
        x_t = process.q_sample(images, t, rng=counters, sample_ids=ids, dtype=torch.float32)
        ops.group_norm_silu(x_t, 4, weight, bias).sum().backward()
    assert not [name for name in calls.names if name.split(".")[1] in HOST]
    assert calls.names[0] == "fastdiff.q_sample.default"
    assert {name for name in calls.names if name.startswith("fastdiff")} >= {"fastdiff.q_sample.default"}


def test_memory_does_not_grow_with_the_number_of_rows(process):
    """What a run makes is made before its first row."""
    totals = []
    for steps in (10, 40):
        run = Sampler(model, process, steps=steps)._run(SHAPE)
        totals.append(sum(value.nbytes for value in vars(run).values() if isinstance(value, torch.Tensor)))
    per_row = 24 * 4 + 8 * SHAPE[0] + 4 * 8
    assert totals[1] - totals[0] <= 30 * per_row


def test_a_run_holds_no_more_than_it_needs(process):
    run = Run(Sampler(model, process, steps=5), Sampler(model, process, steps=5).plan, SHAPE[1:], 4)
    assert run.model_input is run.history is run.x0 is run.raw is None
