"""The loop: what a step computes, what a run leaves, and what it refuses."""

import dataclasses
import functools
import json
import math
import zlib
from typing import NamedTuple

import pytest
import torch

from fastdiff import GaussianProcess, load_unet, ops, schedules
from fastdiff.capture import Capture
from fastdiff.training import EMA, TrainConfig, checks, loop, posthoc, train
from fastdiff.training.checkpoint import checkpoints
from fastdiff.training.loop import Run, lr_factor
from fastdiff.training.timesteps import Batches, self_conditioned
from tests.cuda_graphs import Cuda
from tests.training.runs import Killed, config, killed_at, lines, run, saved, states_equal

# ---- What a step computes ----


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_batch(make_model, images, tmp_path, prediction, flip):
    """x_t = alpha x_0 + sigma noise and the loss, by hand from the same draws."""
    process = GaussianProcess(schedules.linear(100), prediction=prediction)
    run = Run(make_model(), process, images, tmp_path / "a", config(flip=flip, batch_size=40), {}, False)
    run._fetch()
    batch = run._batch()
    x_t, t = batch.x_t, batch.t
    rng, ids = ops.rng.make_rng(0, 0), torch.arange(40)
    coins = ops.reference.words(1, rng, ids, ops.rng.FLIPS)[0, :, 0] >= 2**31
    x = (images[run.supply.batches.positions(0)].double() / 127.5) - 1
    if flip:
        x = torch.where(coins.view(-1, 1, 1, 1), x.flip(-1), x)
        assert 8 < coins.sum() < 32
    noise = ops.normal((40, 1, 4, 4), rng, ids, stream=ops.rng.TRAINING).double()
    alpha, sigma = (table[t].view(-1, 1, 1, 1) for table in (process.alpha, process.sigma))
    torch.testing.assert_close(x_t.double(), alpha * x + sigma * noise, rtol=0, atol=1e-6)
    expected = {"eps": noise, "x0": x, "v": alpha * noise - sigma * x}[prediction]
    output = torch.randn(40, 1, 4, 4)
    squares = (output - expected).square().flatten(1).mean(1)
    torch.testing.assert_close(run.objective(output, batch).double(), squares, rtol=1e-5, atol=0)
    run.metrics.close()


def test_steps_are_adam_on_the_squared_error(make_model, process, images, tmp_path):
    """Three steps by torch's ordinary Adam, clipping and averaging."""
    model, other = make_model(), make_model()
    run = Run(model, process, images, tmp_path / "a", config(grad_clip=0.5), {}, False)
    optimizer, ema, norms = torch.optim.Adam(other.parameters(), lr=1e-2), EMA(other, 0.999), []
    for step in range(3):
        run._fetch()
        batch = run._batch()
        noise = ops.normal(batch.x_t.shape, batch.rng, batch.sample_ids, stream=ops.rng.TRAINING)
        run.train_step()
        optimizer.zero_grad()
        (other(batch.x_t, batch.t) - noise).square().mean().backward()
        norm = sum(p.grad.double().square().sum() for p in other.parameters()).sqrt().item()
        norms.append(norm)
        for parameter in other.parameters():
            parameter.grad *= min(1.0, 0.5 / norm)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 2)
        optimizer.step()
        ema.update(other)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(run.ema.average[name], ema.average[name], rtol=1e-3, atol=1e-5)
    assert run.record.take(3, 6)["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-4)
    run.metrics.close()


COSINE_AT_4 = 0.2 + 0.8 * (1 + math.cos(math.pi * 4 / 50)) / 2


@pytest.mark.parametrize("step, expected", [(0, 0.1), (4, 0.5 * COSINE_AT_4), (25, 0.6), (50, 0.2), (80, 0.2)])
def test_learning_rate(step, expected):
    """Ten steps of warm-up times a cosine from 1 to 0.2; at 50 of 50 steps and after, its end."""
    assert lr_factor(step, TrainConfig(steps=50, warmup=10, decay_to=0.2)) == pytest.approx(expected)


def test_constant_learning_rate():
    assert {lr_factor(step, TrainConfig(steps=50, warmup=0)) for step in range(60)} == {1.0}


def test_dropout_follows_the_places_in_the_batch(make_model, process, images, tmp_path):
    """In every part of a batch; a model that takes no counters is given none."""
    model, given = make_model(dropout=0.3), []
    model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    run(model, process, images, tmp_path / "a", config(steps=2, batch_size=4, accumulate=2))
    told = [(kwargs["counters"][0][0].item(), kwargs["counters"][1].tolist()) for kwargs in given]
    assert told == [(0, [0, 1]), (0, [2, 3])] * 2
    model, given[:] = make_model(), []
    model.takes_counters = False
    model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    run(model, process, images, tmp_path / "b", config(steps=1, batch_size=4))
    assert given == [{}]


def test_half_of_the_samples_are_shown_an_estimate_of_their_own(make_model, process, images, tmp_path):
    model, given = make_model(self_condition=True), []
    model.register_forward_hook(lambda module, args, kwargs, y: given.append((args, kwargs, y)), with_kwargs=True)
    run(model, process, images, tmp_path / "a", config(steps=1, batch_size=16))
    (args, first, output), (again, second, _) = given
    assert "x_self_cond" not in first and torch.equal(args[0], again[0]) and not output.requires_grad
    t = torch.searchsorted(process.timestep_map, args[1].long())
    estimate, shown = process.predict_x0(args[0], t, output), second["x_self_cond"]
    told = shown.flatten(1).any(1)
    assert torch.equal(shown[told], estimate[told]) and told.tolist() == self_conditioned(*first["counters"]).tolist()
    assert 2 < told.sum() < 14


def test_it_learns(make_model, process, images, tmp_path):
    model = run(make_model(), process, images, tmp_path / "a", config(steps=150, batch_size=20, log_every=30))
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert losses[0] > 0.6 and losses[-1] < 0.7 * losses[0]
    assert not model.training


# ---- What a run leaves ----


def test_files_of_a_run(make_model, process, images, tmp_path):
    drawn = []

    def draw(model, step):
        assert states_equal(model, load_unet(out / "model.safetensors"))
        drawn.append(step)
        return torch.zeros(8, 8, dtype=torch.uint8).numpy()

    out = tmp_path / "runs" / "a"
    settings = {"process": {"schedule": "linear"}, "model": {"channel_mult": (1, 2)}}
    options = config(sample_every=10, tensorboard=True)
    model = run(make_model(), process, images, out, options, settings=settings, draw=draw)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "tensorboard",
    ]  # fmt: skip
    assert drawn == [10, 12]
    assert [line["step"] for line in lines(out)] == [5, 10, 12]
    quarters = {f"loss_q{i}" for i in (1, 2, 3, 4)}
    for line in lines(out):
        assert line.keys() - quarters == {"step", "loss", "lr", "gradient_norm", "images_per_s"}
    told = json.loads((out / "config.json").read_text())
    assert told["steps"] == 12 and told["model"] == {"channel_mult": [1, 2]}
    assert told["images"]["shape"] == [20, 1, 4, 4]
    assert states_equal(model, load_unet(out / "model.safetensors"))
    assert list(checkpoints(out)) == [12, 10]
    assert not torch.equal(saved(out)["model.conv_in.bias"], model.conv_in.bias)


def test_the_bar_shows_loss_speed_and_time_left(make_model, process, images, tmp_path, capsys):
    train(make_model(), process, images, tmp_path / "a", config())
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "12/12" in bar and "loss=" in bar and "step/s" in bar and "<00:00" in bar


def test_torchs_generator_is_left_as_it_was(make_model, process, images, tmp_path):
    model = make_model()
    torch.manual_seed(5)
    run(model, process, images, tmp_path / "a")
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


def test_any_module_trains(process, images, tmp_path):
    """Not square, no save, no memory format."""

    class Net(torch.nn.Conv2d):
        def forward(self, x, t):
            assert x.is_contiguous() and t.dtype is torch.int64
            return super().forward(x)

    run(Net(1, 1, 1), process, images[..., :3], tmp_path / "a")
    assert not (tmp_path / "a" / "model.safetensors").exists() and list(checkpoints(tmp_path / "a")) == [12, 10]


# ---- Refusals, before anything is written ----


@pytest.mark.parametrize("options, kind, message", [
    ({"images": torch.zeros(2, 1, 4, 4)}, TypeError, "images must be a uint8 tensor, got torch.float32"),
    ({"images": [1]}, TypeError, "images must be a uint8 tensor, got list"),
    ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, ValueError, r"images must have shape \[N, C, H, W\] with"),
    ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, ValueError, r"with N at least 1, got \[2, 4, 4\]"),
    ({"resume": True}, FileNotFoundError, r"out must be a directory of fastdiff train, got '.*a' without config\.json"),
])  # fmt: skip
def test_refusals(make_model, process, images, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        run(make_model(), process, **{"images": images, "out": tmp_path / "a", **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_used_place_is_refused(make_model, process, images, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out must be a new or empty directory, got '.*' "):
        run(make_model(), process, images, tmp_path / name)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


def test_a_model_of_another_shape(process, images, tmp_path):
    class Net(torch.nn.Conv2d):
        def forward(self, x, t):
            return super().forward(x)

    with pytest.raises(ValueError, match=r"model must return a tensor of shape \[6, 1, 4, 4\], got \[6, 2, 4, 4\]"):
        run(Net(1, 2, 1), process, images, tmp_path / "a")


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(make_model, process, images, tmp_path):
    calls = []

    def spoil(module, arguments, output):
        calls.append(1)
        return output * (math.nan if len(calls) > 7 else 1)

    model = make_model()
    model.register_forward_hook(spoil)
    with pytest.raises(ValueError, match="loss must stay finite, got none in step 7, first in module model: lower"):
        run(model, process, images, tmp_path / "a", config(log_every=50))
    assert list(checkpoints(tmp_path / "a")) == [5]
    assert all(value.isfinite().all() for value in saved(tmp_path / "a").values())


@pytest.mark.parametrize("option, value, message", [
    ("steps", 0, "steps must be a positive int, got 0"),
    ("steps", True, "steps must be a positive int, got True"),
    ("batch_size", 2.5, r"batch_size must be a positive int, got 2\.5"),
    ("log_every", 0, "log_every must be a positive int, got 0"),
    ("checkpoint_every", -1, "checkpoint_every must be a positive int, got -1"),
    ("sample_every", -1, "sample_every must be an int of at least 0, got -1"),
    ("warmup", -1, "warmup must be an int of at least 0, got -1"),
    ("lr", 0.0, r"lr must be positive and finite, got 0\.0"),
    ("lr", math.nan, "lr must be positive and finite, got nan"),
    ("grad_clip", math.inf, "grad_clip must be positive and finite, got inf"),
    ("decay_to", 1.5, r"decay_to must be in \[0, 1\], got 1\.5"),
    ("ema_decay", 1.0, r"ema_decay must be in \[0, 1\), got 1\.0"),
    ("seed", 2**64, r"seed must be an int in \[-2\*\*63, 2\*\*64\), got 18446744073709551616"),
    ("flip", 1, "flip must be a bool, got 1"),
    ("precision", "fp16", "precision must be auto, fp32 or bf16, got 'fp16'"),
])  # fmt: skip
def test_bad_options(option, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{option: value})


def test_bf16_trains(make_model, process, images, tmp_path):
    dtypes = []
    model = make_model()
    model.conv_out.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    run(model, process, images, tmp_path / "a", config(steps=2, precision="bf16"))
    assert dtypes == [torch.bfloat16] * 2 and model.conv_out.weight.dtype is torch.float32


# ---- CUDA graphs ----


def standing_in(monkeypatch, cuda):
    """Training steps are captured on the CPU, by what stands in for torch.cuda."""
    monkeypatch.setattr(loop, "check_graph", lambda *_: None)
    monkeypatch.setattr(loop, "Capture", functools.partial(Capture, cuda=cuda))


@pytest.mark.parametrize("options", [
    {"timesteps": "loss-aware", "flip": True, "warmup": 20}, {"accumulate": 2, "label_dropout": 0.4, "log_every": 3},
])  # fmt: skip
def test_captured_steps_learn_what_eager_ones_do(make_model, process, images, tmp_path, monkeypatch, options):
    """Two steps, one that is recorded, all the rest replayed; logged, saved and resumed on the way."""
    network = {"dropout": 0.3}
    if "label_dropout" in options:
        network["num_classes"] = 3
    data = Labelled(images, torch.arange(20) % 2) if "label_dropout" in options else images

    def model(seed):
        model = make_model(seed, **network)
        model.num_classes = 2
        return model

    whole = run(model(0), process, data, tmp_path / "eager", config(**options))
    cuda = Cuda()
    standing_in(monkeypatch, cuda)
    captured = config(**options, cuda_graph=True)
    run(model(0), process, data, tmp_path / "graph", dataclasses.replace(captured, steps=7))
    assert cuda.log.count("replay") == 5 and cuda.log.count("record on side") == 1
    resumed = run(model(1), process, data, tmp_path / "graph", captured, resume=True)
    assert cuda.log.count("replay") == 5 + 3
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    pairs = zip(lines(tmp_path / "eager")[-1].items(), lines(tmp_path / "graph")[-1].items(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and (name == "images_per_s" or a == pytest.approx(b, rel=1e-3)), name


def test_a_captured_bad_step_is_left_out_and_named(make_model, process, images, tmp_path, monkeypatch):
    standing_in(monkeypatch, Cuda())
    model = make_model()
    run = Run(model, process, images, tmp_path / "a", config(cuda_graph=True), {}, False)
    for _ in range(4):
        run.train_step()
    good = {name: value.clone() for name, value in model.state_dict().items()}
    fetch = run._fetch

    def spoilt():
        fetch()
        run.lr.fill_(math.nan)
        model.conv_in.bias.data.fill_(math.nan)

    monkeypatch.setattr(run, "_fetch", spoilt)
    run.train_step()
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items() if name != "conv_in.bias")
    with pytest.raises(ValueError, match=r"got none in step 4, first in parameter conv_in\.bias: lower lr"):
        run.log()
    run.metrics.close()


def test_cuda_graphs_want_a_gpu(make_model, process, images, tmp_path):
    with pytest.raises(ValueError, match="cuda_graph must be False but for one GPU, got True for device cpu"):
        run(make_model(), process, images, tmp_path / "a", config(cuda_graph=True))
    assert not (tmp_path / "a").exists()


# ---- Options ----


@pytest.mark.parametrize("options", [{"accumulate": 3}, {"timesteps": "stratified"}, {"timesteps": "loss-aware"},
                                     {"weighting": "min-snr"}, {"objective": "vlb"}, {"compile": True}])  # fmt: skip
def test_resumed_with_options(make_model, process, images, tmp_path, monkeypatch, options):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    options = config(**options)
    whole = run(make_model(), process, images, tmp_path / "whole", options)
    with pytest.raises(Killed):
        run(killed_at(make_model(), 7 * options.accumulate), process, images, tmp_path / "halves", options)
    assert states_equal(run(make_model(7), process, images, tmp_path / "halves", options, resume=True), whole)


def test_accumulated_parts_are_the_batch(make_model, process, images, tmp_path):
    """The same images, noise and gradient, up to rounding."""
    one = run(make_model(), process, images, tmp_path / "one", config(steps=3))
    parts = run(make_model(), process, images, tmp_path / "parts", config(steps=3, accumulate=3))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_images_on_the_disk_are_told_apart_a_few_at_a_time(monkeypatch):
    """Their checksum is that of all, whatever their layout, and takes no memory for all."""
    images = torch.randint(256, (10, 4, 4, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    seen, crc32 = [], zlib.crc32
    monkeypatch.setattr(checks, "_AT_ONCE", 3 * 48)
    monkeypatch.setattr(checks.zlib, "crc32", lambda part, *crc: (seen.append(len(part)), crc32(part, *crc))[1])
    expected = crc32(images.contiguous().numpy())
    assert checks.fingerprint(images) == {"shape": [10, 3, 4, 4], "crc32": expected} and seen == [3, 3, 3, 1]


def test_learned_variances(make_model, images, tmp_path):
    process = GaussianProcess(schedules.cosine(100), variance="learned_range")
    options = config(objective="hybrid", steps=60, batch_size=20, log_every=20)
    run(make_model(out_channels=2), process, images, tmp_path / "a", options)
    losses = [line["loss"] for line in lines(tmp_path / "a")]
    assert losses[-1] < 0.8 * losses[0]


class Labelled(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


class Told(torch.nn.Conv2d):
    """Keeps the labels it was told."""

    num_classes = 2

    def __init__(self):
        super().__init__(1, 1, 1)
        self.told = []

    def forward(self, x, t, labels):
        self.told.append(labels.clone())
        return super().forward(x)


def test_labels_go_with_their_images_and_some_are_hidden(process, images, tmp_path):
    labels = torch.arange(20) % 2
    model = Told()
    run(model, process, Labelled(images, labels), tmp_path / "a", config(label_dropout=0.3, batch_size=20))
    told = torch.cat(model.told)
    places = torch.cat([Batches(20, 20, 0).positions(step) for step in range(12)])
    hidden = told == 2
    assert torch.equal(told[~hidden], labels[places][~hidden]) and 40 < hidden.sum() < 104
    with pytest.raises(ValueError, match="data must have labels where label_dropout is given, got none"):
        run(Told(), process, images, tmp_path / "b", config(label_dropout=0.3))
    with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes = 2\), got 2"):
        run(Told(), process, Labelled(images, labels + 1), tmp_path / "b", config(label_dropout=0.3))
    for wrong, message in (
        (labels - 1, r"labels must be in \[0, num_classes = 2\), got -1"),
        (labels[:7], r"labels must be int64 of shape \[20\], got torch.int64 of shape \[7\]"),
        (labels.float(), r"labels must be int64 of shape \[20\], got torch.float32 of shape \[20\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run(Told(), process, Labelled(images, wrong), tmp_path / "b", config(label_dropout=0.3))
    assert not (tmp_path / "b").exists()


def test_other_labels_are_refused(process, images, tmp_path):
    """A run of an earlier version, which tells nothing of its labels, goes on and tells them."""
    labels, out, options = torch.arange(20) % 2, tmp_path / "a", config(label_dropout=0.3, steps=1)
    run(Told(), process, Labelled(images, labels), out, options)
    told = json.loads((out / "config.json").read_text())
    with pytest.raises(ValueError, match="labels must be as in the run to resume"):
        run(Told(), process, Labelled(images, 1 - labels), out, options, resume=True)
    (out / "config.json").write_text(json.dumps({name: told[name] for name in told if name != "labels"}))
    run(Told(), process, Labelled(images, labels), out, options, resume=True)
    assert json.loads((out / "config.json").read_text()) == told


def test_snapshots_of_power_averages(make_model, process, images, tmp_path):
    options = config(ema_sigma_rel=(0.05, 0.1), snapshot_every=4)
    run(make_model(), process, images, tmp_path / "a", options)
    assert [t for t, _, _ in posthoc.snapshots(tmp_path / "a")] == [4, 4, 8, 8, 12, 12]
    rebuilt = posthoc.reconstruct(tmp_path / "a", 0.1)
    kept = saved(tmp_path / "a")
    torch.testing.assert_close(rebuilt["conv_in.weight"], kept["ema.2.conv_in.weight"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("options, message", [
    (dict(objective="hybrid"), "objective must be simple or vlb where variance is fixed_small, got 'hybrid'"),
    (dict(objective="vlb", weighting="snr"), "weighting must be uniform where objective is vlb, got 'snr'"),
    (dict(accumulate=4), r"batch_size must be a multiple of ranks \* accumulate = 1 \* 4, got 6"),
])  # fmt: skip
def test_options_that_do_not_go_together(make_model, process, images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(make_model(), process, images, tmp_path / "a", config(**options))
    assert not (tmp_path / "a").exists()


def test_a_bad_step_leaves_the_weights(make_model, process, images, tmp_path):
    """The device itself leaves the step out; the next ones go on from good weights."""
    model = make_model()
    run = Run(model, process, images, tmp_path / "a", config(), {}, False)
    run.train_step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle = model.register_forward_hook(lambda module, inputs, output: output * math.nan)
    run.train_step()
    assert states_equal(model, type("", (), {"state_dict": lambda self: before})())
    handle.remove()
    run.train_step()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(ValueError, match="loss must stay finite, got none in step 1: lower lr or use fp32"):
        run.log()
    run.metrics.close()
