"""The loop: what the network is given, bits, modes, errors."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.ops.rows import COLUMNS
from fastdiff.samplers import Plan, ddpm, network

SHAPE = (3, 8, 8)


class Net(torch.nn.Module):
    """A convolution with dropout and a sample shape."""

    sample_shape = SHAPE

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.dropout = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.BatchNorm2d(3).eval()

    def forward(self, x, t):
        return self.dropout(self.conv(x)) + 0.001 * t.view(-1, 1, 1, 1)


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(1000))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def elementwise(x, t):
    return 0.1 * x.tanh() + 0.001 * t.view(-1, 1, 1, 1)


class SelfConditioned(torch.nn.Module):
    """It keeps what it was told of x_0."""

    sample_shape, self_condition, null_condition = SHAPE, True, torch.zeros(1)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, y=None, *, x_self_cond):
        self.seen.append(x_self_cond.clone())
        return 0.1 * (x + x_self_cond).tanh() + (0 if y is None else 0.01 * y.view(-1, 1, 1, 1))


# ---- Self-conditioning ----


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_network_that_conditions_itself_is_fed_its_last_estimate(process, guidance, dtype):
    """Zeros at first, in each batch; both halves of a guided call alike."""
    model = SelfConditioned()
    model.weight = None if dtype is None else torch.nn.Parameter(torch.zeros(1, dtype=dtype))
    condition = None if guidance is None else torch.ones(1)
    sampler = Sampler(model, process, "ddim", 4, guidance=guidance)
    _, x0 = sampler.trajectory(2, condition=condition)
    expected = torch.cat([torch.zeros_like(x0[:1]), x0[:-1]]).to(dtype or torch.float32)
    for seen, wanted in zip(model.seen, expected, strict=True):
        assert torch.equal(seen, wanted if guidance is None else torch.cat([wanted, wanted]))
    model.seen.clear()
    sampler.sample(4, batch_size=2, condition=condition)
    assert [seen.any().item() for seen in model.seen] == [False, True, True, True] * 2


def test_what_a_network_is_told_of_x0_may_be_given(process):
    model = SelfConditioned()
    Sampler(model, process, "ddim", 2).sample(1, condition={"x_self_cond": torch.ones(1, *SHAPE)})
    assert all((seen == 1).all() for seen in model.seen)


# ---- Noise and bits ----


def test_a_run_starts_at_the_plans_scale(process):
    def keep(process, timesteps, *, clip, start):
        return Plan([0], call=False, c_x=1, start=start)

    unit = Sampler(elementwise, process, partial(keep, start=1.0)).sample((2, *SHAPE), seed=3)
    assert torch.equal(Sampler(elementwise, process, partial(keep, start=80.0)).sample((2, *SHAPE), seed=3), 80 * unit)


def test_a_sample_depends_on_seed_and_id_alone(backend, process):
    sampler = Sampler(elementwise, process, steps=5)
    whole = sampler.sample((64, *SHAPE), seed=5)
    assert torch.equal(sampler.sample((1, *SHAPE), seed=5, sample_ids=[17]), whole[17:18])
    assert torch.equal(sampler.sample((3, *SHAPE), seed=5, sample_ids=torch.tensor([40, 2, 63])), whole[[40, 2, 63]])
    assert torch.equal(sampler.sample((24, *SHAPE), seed=5, sample_ids=range(40, 64)), whole[40:])
    assert torch.equal(sampler.sample((64, *SHAPE), seed=5), whole)
    assert not torch.equal(sampler.sample((64, *SHAPE), seed=6), whole)
    assert len({tuple(sample.flatten()[:8].tolist()) for sample in whole}) == 64


def test_a_sample_is_the_same_in_a_batch_of_4096(process):
    sampler = Sampler(elementwise, process, steps=2)
    whole = sampler.sample((4096, 1, 3, 3), seed=5)
    assert torch.equal(sampler.sample((1, 1, 3, 3), seed=5, sample_ids=[4095]), whole[4095:])


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_any_64_bit_seed(process, seed):
    sampler = Sampler(elementwise, process, steps=2)
    wrapped = (seed + 2**63) % 2**64 - 2**63
    assert torch.equal(sampler.sample((1, 1, 2, 2), seed=seed), sampler.sample((1, 1, 2, 2), seed=wrapped))


def test_fixed_batches_make_bytes_independent_of_n(process, net):
    sizes = []

    class Recording(Net):
        def forward(self, x, t):
            sizes.append(len(x))
            return super().forward(x, t)

    model = Recording()
    model.load_state_dict(net.state_dict())
    sampler = Sampler(model, process, steps=3)
    ten = sampler.sample(10, seed=2, batch_size=4)
    assert sizes == [4] * 9
    for n in (1, 4, 7, 13):
        samples = sampler.sample(n, seed=2, batch_size=4)
        assert samples.shape == (n, *SHAPE)
        assert samples[:10].numpy().tobytes() == ten[:n].numpy().tobytes()
    torch.testing.assert_close(sampler.sample(10, seed=2), ten)


def test_no_samples(process, net):
    assert Sampler(net, process, steps=2).sample(0).shape == (0, *SHAPE)
    assert Sampler(net, process, steps=2).sample(sample_ids=[], batch_size=4).shape == (0, *SHAPE)
    assert [step.x0.shape for step in Sampler(net, process, steps=2).stream(0)] == [(0, *SHAPE)] * 2


# ---- What the network is given ----


def test_the_network_sees_original_timesteps(process):
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    Sampler(model, process.respace(range(0, 1000, 100)), steps=[0, 3, 9]).sample((2, 1, 4, 4))
    assert all(t.dtype is torch.int64 and t.is_contiguous() for t in seen)
    assert [t.tolist() for t in seen] == [[900, 900], [300, 300], [0, 0]]


def test_all_timesteps_by_default(process):
    assert len(Sampler(elementwise, process).plan) == 1000
    assert Sampler(elementwise, process, steps=1).plan.time.tolist() == [0]


def test_float_times_and_scaled_inputs_and_history(process):
    """A plan with everything that the loop itself serves: c_in, history, rows without a call, float times."""
    seen = []

    def model(x, t):
        seen.append((x.clone(), t))
        return torch.ones_like(x)

    def solver(process, timesteps, *, clip):
        return Plan([0.5, 0.25, 0.125], call=[True, False, True], c_in=[2.0, 1.0, 3.0], c_x=[1, 1, 0],
                    c_m=[1, 0, 0], write=[1, -1, -1], q_m=[7, 0, 0], c_2=[0, 0, 1])  # fmt: skip

    steps = list(Sampler(model, process, solver).stream((1, 1, 2, 2)))
    x_T = steps[0].x - 1
    assert [t.tolist() for _, t in seen] == [[0.5], [0.125]] and seen[0][1].dtype is torch.float32
    torch.testing.assert_close(seen[0][0], 2 * x_T)
    torch.testing.assert_close(seen[1][0], 3 * steps[1].x)
    assert torch.equal(steps[0].x, steps[1].x) and torch.equal(steps[2].x, torch.full_like(x_T, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_network_is_fed_its_own_dtype_and_the_state_is_float32(process, dtype):
    seen = []

    class Half(Net):
        def forward(self, x, t):
            seen.append(x.dtype)
            return 0.1 * x

    samples = Sampler(Half().to(dtype), process, steps=3).sample(2)
    assert seen == [dtype] * 3 and samples.dtype is torch.float32
    expected = Sampler(lambda x, t: 0.1 * x, process, steps=3).sample((2, *SHAPE))
    torch.testing.assert_close(samples, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("precision, units, autocast", [
    ("auto", False, None), ("auto", True, torch.bfloat16), ("fp32", True, None), ("bf16", False, torch.bfloat16),
])  # fmt: skip
def test_precision_of_a_float32_network(process, net, monkeypatch, precision, units, autocast):
    monkeypatch.setattr("fastdiff.samplers.network.has_bfloat16_units", lambda device: units)
    outputs = []
    net.conv.register_forward_hook(lambda module, inputs, output: outputs.append((inputs[0].dtype, output.dtype)))
    samples = Sampler(net, process, steps=2, precision=precision).sample(2)
    assert outputs == [(torch.float32, autocast or torch.float32)] * 2 and samples.dtype is torch.float32


def test_a_model_may_ask_for_float32_on_a_cpu(process, net, monkeypatch):
    """By the attribute that `fastdiff.UNet` has; bf16 by name is still heard."""
    monkeypatch.setattr("fastdiff.samplers.network.has_bfloat16_units", lambda device: True)
    outputs = []
    net.conv.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    net.float32_on_cpu = fastdiff.UNet.float32_on_cpu
    for precision in ("auto", "bf16"):
        Sampler(net, process, steps=1, precision=precision).sample(2)
    assert outputs == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("has", [(), ("avx512_bf16",), ("amx_tile",)])
def test_bfloat16_units_of_a_cpu(monkeypatch, has):
    for unit in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{unit}_supported", lambda unit=unit: unit in has, raising=False)
    assert network.has_bfloat16_units(torch.device("cpu")) is bool(has)
    assert network.has_bfloat16_units(torch.device("meta")) is False


def test_a_model_that_changed_is_looked_at_again(process, net):
    sampler = Sampler(net, process, steps=2, precision="fp32")
    net.half()
    with pytest.raises(ValueError, match=r"precision must be auto for a model of torch\.float16, got 'fp32'"):
        sampler.sample(1)


def test_fp32_switches_a_surrounding_autocast_off(process, net):
    outputs = []
    net.conv.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        Sampler(net, process, steps=1, precision="fp32").sample(1)
        Sampler(net, process, steps=1).sample(1)
    assert outputs == [torch.float32, torch.bfloat16]


def test_channels_last_where_the_model_asks(process, net):
    layouts = []
    net.memory_format = torch.channels_last
    net.conv.register_forward_hook(
        lambda module, inputs, output: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    sampler = Sampler(net, process, steps=3)
    samples = sampler.sample(2, seed=1)
    assert layouts == [True] * 3 and samples.is_contiguous()
    steps = list(sampler.stream(2, seed=1))
    assert all(step.x.is_contiguous() and step.x0.is_contiguous() for step in steps)
    del net.memory_format
    torch.testing.assert_close(sampler.sample(2, seed=1), samples)


def test_rows_that_the_state_decides(backend, process):
    """Each sample's own copy of the row, the kernel's own noise, and the next row's c_in on the network's input."""
    seen, rows_seen = [], []

    def model(x, t):
        seen.append(x.clone())
        return 0.1 * x

    def adjust(rows, row, x, output, noise):
        rows_seen.append((int(row), rows.clone(), noise.clone()))
        rows[:, COLUMNS["c_x"]] = torch.tensor([2.0, 3.0])

    def solver(process, timesteps, *, clip):
        return Plan([9, 5, 1], c_in=[1.0, 0.5, 0.25], c_x=1.0, std=[0.7, 0, 0.3], adjust=adjust, adjusted=[1, 0, 1])

    x, y, z = (step.x for step in Sampler(model, process, solver).stream((2, 1, 2, 2), seed=3))
    x_T, *noise = (ops.normal((2, 1, 2, 2), rng.make_rng(3, row), torch.arange(2), stream=s) for row, s in NOISES)
    factor = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(x, factor * x_T + 0.7 * noise[0])
    assert torch.equal(y, x)
    torch.testing.assert_close(z, factor * y + 0.3 * noise[1])
    for found, expected in zip(seen, (x_T, 0.5 * x, 0.25 * y), strict=True):
        torch.testing.assert_close(found, expected)
    assert [row for row, *_ in rows_seen] == [0, 2]
    for (_, rows, given), row, drawn in zip(rows_seen, (0, 2), noise, strict=True):
        assert torch.equal(rows, Sampler(model, process, solver).plan.table()[[row, row]]) and torch.equal(given, drawn)


NOISES = ((0, rng.INITIAL), (0, rng.STEP), (2, rng.STEP))


def test_the_last_row_may_be_one_of_them(process):
    """After it comes no c_in: a model's input would be the state itself."""

    def solver(process, timesteps, *, clip):
        adjust = lambda rows, *_: None  # noqa: E731
        return Plan([9, 5], c_in=[0.5, 0.25], c_x=1.0, adjust=adjust, adjusted=[False, True])

    run = Sampler(elementwise, process, solver)._run((2, 1, 2, 2))
    for row in range(2):
        run.row(row)
    assert torch.equal(run.model_input, run.x)


def test_no_batch_sees_the_history_of_another(process):
    def solver(process, timesteps, *, clip):
        return Plan([9, 5], c_x=1.0, c_1=[1.0, 1.0], write=0, q_x=1.0)

    sampler = Sampler(elementwise, process, solver)
    assert torch.equal(sampler.sample((4, 1, 2, 2), batch_size=2), sampler.sample((4, 1, 2, 2)))


# ---- Modes ----


def test_a_module_runs_in_evaluation_mode_and_is_left_as_it_was(process, net):
    during = []

    def look(*_):
        during.append((net.training, net.dropout.training, torch.is_grad_enabled()))

    net.conv.register_forward_hook(look)
    net.train()
    net.frozen.eval()
    sampler = Sampler(net, process, steps=2)
    first = sampler.sample(1)
    assert during == [(False, False, False)] * 2
    assert (net.training, net.dropout.training, net.frozen.training) == (True, True, False)
    assert torch.equal(sampler.sample(1), first)
    for _ in sampler.stream(1):
        assert (net.training, net.dropout.training, net.frozen.training) == (True, True, False)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mark", [lambda x: x.detach().requires_grad_(), torch.Tensor.requires_grad_])
@pytest.mark.parametrize("solver", ["ddim", "dpm_adaptive"])
def test_a_model_may_differentiate_an_energy(process, mark, solver):
    """The gradient of sum(x^2) / 20, whether the model marks a view of its input or the input itself."""

    def energy(x, t):
        with torch.enable_grad():
            x = mark(x)
            return torch.autograd.grad(x.square().sum() / 20, x)[0]

    steps = None if solver == "dpm_adaptive" else 3
    expected = Sampler(lambda x, t: x / 10, process, solver, steps).sample((4, 3, 4, 4))
    found = Sampler(energy, process, solver, steps).sample((4, 3, 4, 4), batch_size=2)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_mode_is_restored_after_an_exception_which_passes_through(process, net):
    def fail(*_):
        raise KeyError("mine")

    net.conv.register_forward_hook(fail)
    with pytest.raises(KeyError, match="mine"):
        Sampler(net, process, steps=2).sample(1)
    assert net.training and torch.is_grad_enabled()


def test_samples_can_be_trained_on(process, net):
    sampler = Sampler(net, process, steps=2)
    for samples in (sampler.sample(2), *next(sampler.stream(2))[2:]):
        assert not samples.is_inference() and not samples.requires_grad
        net(samples, torch.zeros(2)).sum().backward()


def test_nan_passes_through_the_clip(backend, process):
    def model(x, t):
        output = torch.zeros_like(x)
        output[0, 0, 0, 0] = torch.nan
        return output

    samples = Sampler(model, process, steps=4).sample((2, 1, 3, 3))
    assert samples.isnan().sum() == 1 and samples[0, 0, 0, 0].isnan()


def test_clip_bounds_the_last_step(process):
    wild = lambda x, t: 100 * torch.ones_like(x)  # noqa: E731
    assert Sampler(wild, process, steps=4).sample((1, 1, 3, 3)).unique().tolist() == [-1]
    assert Sampler(wild, process, steps=4, clip=2.5).sample((1, 1, 3, 3)).unique().tolist() == [-2.5]
    assert Sampler(wild, process, steps=4, clip=None).sample((1, 1, 3, 3)).abs().min() > 3


def test_the_loop_reads_nothing_back(process, net):
    """Fake tensors hold no data: any read of one by the host raises."""
    sampler = Sampler(net, process, steps=5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sampler.sample(4).shape == (4, *SHAPE)


# ---- Looking at a run ----


def test_stream_yields_every_row(process, net):
    sampler = Sampler(net, process, steps=6)
    steps = list(sampler.stream(3, seed=4))
    assert [step.row for step in steps] == list(range(6))
    assert [step.time for step in steps] == sampler.plan.time.tolist()
    assert torch.equal(steps[-1].x, sampler.sample(3, seed=4))
    assert all(step.x0.abs().max() <= 1 for step in steps) and len({step.x.data_ptr() for step in steps}) == 6
    torch.testing.assert_close(steps[-1].x0, steps[-1].x)
    retold = process.respace(6).posterior(steps[2].x0, steps[1].x, torch.full((3,), 3)).mean
    assert (steps[2].x - retold).std().item() == pytest.approx(sampler.plan["std"][2].item(), rel=0.2)


def test_progress(process, net, capsys):
    sampler = Sampler(net, process, steps=5)
    sampler.sample(3, batch_size=2)
    assert capsys.readouterr().err == ""
    sampler.sample(3, batch_size=2, progress=True)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_copies(process, net, duplicate):
    sampler = Sampler(net, process, steps=3)
    assert torch.equal(duplicate(sampler).sample(2), sampler.sample(2))


def test_options_are_the_solvers(process, net):
    def solver(process, timesteps, *, clip, factor=1.0):
        return ddpm(process, timesteps, clip=clip).replace(std=factor)

    assert Sampler(net, process, solver, steps=3, factor=0.25).plan["std"].tolist() == [0.25] * 3
    with pytest.raises(TypeError, match=r"options must be among the solver's \(factor\), got 'eta'"):
        Sampler(net, process, solver, steps=3, eta=1.0)


def test_a_solver_may_be_a_function(process, net):
    sampler = Sampler(net, process, solver=ddpm, steps=3)
    assert torch.equal(sampler.sample(1), Sampler(net, process, steps=3).sample(1))


def test_stream_every_so_many_rows(process, net):
    sampler = Sampler(net, process, steps=7)
    whole = list(sampler.stream(2, seed=4))
    some = list(sampler.stream(2, seed=4, every=3))
    assert [step.row for step in some] == [2, 5, 6]
    assert all(torch.equal(step.x, whole[step.row].x) for step in some)


def test_a_trajectory_is_the_stream_stacked(process, net):
    sampler = Sampler(net, process, steps=6)
    x, x0 = sampler.trajectory(3, seed=4, every=2)
    steps = list(sampler.stream(3, seed=4, every=2))
    assert x.shape == x0.shape == (3, 3, *SHAPE)
    assert torch.equal(x[1], steps[1].x) and torch.equal(x0[2], steps[2].x0)


def test_a_callback_sees_every_row_of_every_batch(process, net):
    sampler, seen = Sampler(net, process, steps=4), []
    samples = sampler.sample(3, seed=4, batch_size=2, callback=seen.append)
    assert torch.equal(samples, sampler.sample(3, seed=4, batch_size=2))
    assert [(step.row, len(step.x)) for step in seen] == [(row, n) for n in (2, 1) for row in range(4)]
    steps = list(sampler.stream(2, seed=4))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0) for a, b in zip(seen, steps, strict=False))
    assert torch.equal(seen[-1].x, samples[2:]) and not seen[0].x.is_inference()


def test_a_callback_may_stop_early(process, net):
    sampler = Sampler(net, process, steps=6)
    for true in (bool, np.bool_, torch.tensor):
        stopped = sampler.sample(2, seed=4, callback=lambda step, true=true: true(step.row == 2))
        assert torch.equal(stopped, list(sampler.stream(2, seed=4))[2].x)
    for falsy in (None, False, 1, torch.tensor(1), torch.tensor(False)):  # only True
        samples = sampler.sample(2, seed=4, callback=lambda step, falsy=falsy: falsy)
        assert torch.equal(samples, sampler.sample(2, seed=4))


# ---- Errors ----


@pytest.mark.parametrize("options, kind, message", [
    ({"model": 3}, TypeError, "model must be callable, got int"),
    ({"solver": "dpmm"}, ValueError, r"solver must be one of ddpm, .*, or a function, got 'dpmm'"),
    ({"solver": ["ddpm"]}, ValueError, r"solver must be one of ddpm, .*, or a function, got \['ddpm'\]"),
    ({"steps": 0}, ValueError, r"steps must be an int in \[1, 1000\], got 0"),
    ({"steps": 1001}, ValueError, r"steps must be an int in \[1, 1000\], got 1001"),
    ({"steps": [5, 1000]}, ValueError, r"timesteps must be in \[0, 1000\), got 1000"),
    ({"clip": 0.0}, ValueError, r"clip must be a positive number, DynamicThreshold or None, got 0\.0"),
    ({"eta": 0.5}, TypeError, r"options must be among the solver's \(none\), got 'eta'"),
    ({"clip": "1"}, ValueError, "clip must be a positive number, DynamicThreshold or None, got '1'"),
    ({"clip": [1]}, ValueError, r"clip must be a positive number, DynamicThreshold or None, got \[1\]"),
    ({"clip": True}, ValueError, "clip must be a positive number, DynamicThreshold or None, got True"),
    ({"compile": "eager"}, TypeError, "compile must be a bool or a dict of torch.compile's options, got str"),
    ({"precision": "half"}, ValueError, "precision must be one of auto, fp32, bf16, fp16, got 'half'"),
    ({"model": Net().half(), "precision": "fp32"}, ValueError, r"must be auto for a model of torch.float16, got 'fp"),
    ({"model": Net(), "device": "meta"}, ValueError, "device must be cpu, where the model is, got meta"),
])  # fmt: skip
def test_bad_options(process, options, kind, message):
    with pytest.raises(kind, match=message):
        Sampler(**{"model": elementwise, "process": process, **options})


@pytest.mark.parametrize("arguments, kind, message", [
    ({}, ValueError, "n must be given where sample_ids is not, got None"),
    ({"n": -1}, ValueError, "n must be an int of at least 0, got -1"),
    ({"n": 1.5}, TypeError, r"n must be an int, got 1\.5"),
    ({"n": (1, 3, 0, 8)}, ValueError, "n's C, H, W must be an int of at least 1, got 0"),
    ({"n": 2, "sample_ids": [1]}, ValueError, "sample_ids must hold n = 2 ids, got 1"),
    ({"sample_ids": [2**32]}, ValueError, r"sample_ids must be in \[0, 2\*\*32\), got 4294967296"),
    ({"sample_ids": [-1]}, ValueError, r"sample_ids must be in \[0, 2\*\*32\), got -1"),
    ({"n": 1, "seed": 2**64}, ValueError, r"seed must be in \[-2\*\*63, 2\*\*64\), got"),
])  # fmt: skip
def test_bad_arguments(process, net, arguments, kind, message):
    sampler = Sampler(net, process, steps=2)
    for method in (sampler.sample, sampler.stream):
        with pytest.raises(kind, match=message):
            method(**arguments)


def test_other_bad_arguments(process, net):
    with pytest.raises(ValueError, match=r"n must be a shape \(n, C, H, W\) for a model without sample_shape, got 4"):
        Sampler(elementwise, process, steps=2).sample(4)
    with pytest.raises(ValueError, match="every must be an int of at least 1, got 0"):
        Sampler(net, process, steps=2).stream(4, every=0)
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1, got 0"):
        Sampler(net, process, steps=2).sample(4, batch_size=0)


@pytest.mark.parametrize("output, kind, message", [
    (lambda x: (None, x), TypeError, "model must return a tensor, or one in a tuple, dict or .sample, got tuple"),
    (lambda x: x[:, :1], ValueError, r"must return a tensor of shape \[2, 3, 8, 8\], got \[2, 1, 8, 8\]"),
    (lambda x: torch.cat([x, x], 1), ValueError, r"must return a tensor of shape \[2, 3, 8, 8\], got \[2, 6, 8, 8\]"),
    (lambda x: x.to("meta"), ValueError, "model must return a tensor on cpu, got meta"),
    (lambda x: x.long(), ValueError, "model_output must be float32, float16, bfloat16 or float64, got torch.int64"),
])  # fmt: skip
def test_bad_outputs(process, output, kind, message):
    with pytest.raises(kind, match=message):
        Sampler(lambda x, t: output(x), process, steps=2).sample((2, *SHAPE))


def test_the_public_name():
    assert fastdiff.Sampler is Sampler
