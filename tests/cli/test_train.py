"""`fastdiff train`: from data to a directory, Ctrl-C, resuming, and what is refused."""

import argparse
import json
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import load_unet, training
from fastdiff.cli import processes
from fastdiff.cli import settings as command
from fastdiff.cli.flags import add_arguments
from fastdiff.data import load, sources
from fastdiff.evaluation import plots
from fastdiff.training.checkpoint import checkpoints
from tests.cli.runs import TINY, save_images, start, steps_logged, train


def config(out):
    return json.loads((out / "config.json").read_text())


def weights(out):
    return (out / "model.safetensors").read_bytes()


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--out", "x", *options])


def test_a_run(tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    data = save_images(tmp_path / "a.npz")
    assert train(data, out, "--steps=6", "--sample-every=4", "--log-every=2", "--seed=3") == 0
    assert f"fastdiff sample {out}" in capsys.readouterr().out
    if plots.available():
        assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in out.iterdir() if path.name != "loss.png") == [
        "checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "samples", "tensorboard",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0000004.png", "0000006.png"]
    assert steps_logged(out) == [2, 4, 6]
    told = config(out)
    assert (told["data"], told["steps"], told["seed"], told["images"]["shape"]) == (data, 6, 3, [9, 1, 4, 4])
    assert told["process"] == {
        "schedule": "linear", "num_timesteps": 25, "prediction": "eps", "variance": "fixed_small",
    }  # fmt: skip
    model = load_unet(out / "model.safetensors")
    assert model.config.to_dict() == told["model"] and model.sample_shape == (1, 4, 4)


def test_tensorboard_shows_the_run(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(save_images(tmp_path / "a.npz"), tmp_path / "a", "--steps=4", "--sample-every=2", "--log-every=2") == 0
    events = reading.EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars - {f"loss_q{i}" for i in range(1, 5)} == {"loss", "lr", "gradient_norm", "images_per_s"} != scalars
    logged = [json.loads(line)["loss"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)
    assert [event.step for event in events.Images("samples")] == [2, 4]


def test_a_folder_of_colour(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 12, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    options = ["--steps=2", "--image-size=6", "--flip", "--prediction=v", "--schedule=cosine", "--no-tensorboard"]
    assert train(folder, tmp_path / "a", *options) == 0
    told = config(tmp_path / "a")
    assert told["images"]["shape"] == [3, 3, 6, 6] and told["flip"] and not told["tensorboard"]
    assert told["process"]["schedule"] == "cosine" and told["process"]["prediction"] == "v"
    assert np.asarray(Image.open(tmp_path / "a" / "samples" / "0000002.png")).ndim == 3


def test_the_seed_is_of_everything(tmp_path):
    data = save_images(tmp_path / "a.npz")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(data, tmp_path / out, "--steps=3", "--sample-every=0", "--no-tensorboard", f"--seed={seed}") == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_ctrl_c_and_resume(tmp_path):
    """A process interrupted in its run saves, says so and exits with 130; resumed, it ends as one that ran on."""
    data = save_images(tmp_path / "a.npz")
    options = ["train", "--data", data, *TINY, "--sample-every=0", "--no-tensorboard", "--log-every=1"]
    process = start(*options, "--out", tmp_path / "a", "--steps=100000")
    metrics, end = tmp_path / "a" / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"saved in {tmp_path / 'a'}; go on with the same command and --resume" in out
    assert "Traceback" not in err and "step/s" in err and "loss=" in err
    step = next(iter(checkpoints(tmp_path / "a")))
    assert steps_logged(tmp_path / "a") == list(range(1, step + 1))
    assert not list((tmp_path / "a").glob("*.part"))

    steps = f"--steps={step + 3}"
    settings = ["--sample-every=0", "--no-tensorboard", "--log-every=1", steps]
    assert train(data, tmp_path / "a", *settings, "--resume") == 0
    assert train(data, tmp_path / "b", *settings) == 0
    a, b = (load_unet(tmp_path / out / "model.safetensors").state_dict() for out in "ab")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-6)


def test_threads(tmp_path, monkeypatch):
    """The digits' preset has one; an option is heard; afterwards torch has what it had."""
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(training, "train", lambda *_, **__: seen.append(torch.get_num_threads()))
    data = save_images(tmp_path / "a.npz")
    for source, options in ((data, []), ("digits", []), ("digits", ["--threads=3"])):
        assert train(source, tmp_path, threads=options) == 0
    assert seen == [before, 1, 3] and torch.get_num_threads() == before


# ---- Presets ----


def test_the_digits_preset():
    images = load("digits").images
    options, process, network = command.make_settings(command.gathered(parsed("--data=digits")), images)
    assert (network.in_channels, network.image_size) == (1, 8)
    preset = command.PRESETS["digits"]
    assert process == {**processes.OPTIONS["ddpm"], **{k: v for k, v in preset.items() if k in process}}
    assert options.steps == command.PRESETS["digits"]["steps"]


@pytest.mark.parametrize("data, shape", [("fashion-mnist", (1, 28)), ("folder", (3, 32)), ("a.npz", (1, 64))])
def test_other_presets_fit_their_images(data, shape):
    images = torch.zeros(2, shape[0], shape[1], shape[1], dtype=torch.uint8)
    _, process, network = command.make_settings(command.gathered(parsed(f"--data={data}")), images)
    assert (network.in_channels, network.image_size) == shape and process == processes.OPTIONS["ddpm"]


def test_every_option_is_heard():
    """Each option of the run and the network changes what is trained."""
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    given = {
        "steps": 7, "batch_size": 3, "lr": 0.5, "warmup": 9, "decay_to": 0.5, "grad_clip": 2.0, "ema_decay": 0.5,
        "seed": 4, "log_every": 2, "checkpoint_every": 3, "keep": 5, "sample_every": 4, "precision": "bf16",
        "num_timesteps": 50, "schedule": "cosine", "prediction": "x0", "variance": "fixed_large",
        "channels": 12, "channel_mult": (1, 3), "num_res_blocks": 1, "attention_resolutions": (8, 4), "heads": 3,
        "dropout": 0.25, "groups": 6,
    }  # fmt: skip
    texts = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in given.items()}
    words = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
    arguments = parsed("--data=digits", *words, "--flip", "--no-tensorboard")
    options, process, network = command.make_settings(command.gathered(arguments), images)
    found = {**vars(options), **process, **network.to_dict()}
    assert {name: tuple(v) if isinstance(v := found[name], list) else v for name in given} == given
    assert options.flip and not options.tensorboard


# ---- Refusals, before anything is written ----


@pytest.mark.parametrize("options, message", [
    (["--steps=0"], "steps must be a positive int, got 0"),
    (["--lr=-1"], "lr must be positive and finite, got -1.0"),
    (["--ema-decay=1"], "ema_decay must be in [0, 1), got 1.0"),
    (["--num-samples=0"], "num_samples must be at least 1, got 0"),
    (["--num-timesteps=5"], "T must be at least 20"),
    (["--groups=3"], "groups must divide the channels of every level, 4 here, got 3"),
    (["--channel-mult=1,1,1,1"], "image_size must be divisible by 8 for 4 levels, got 4"),
    (["--attention-resolutions=3"], "attention_resolutions must be among 4, got 3"),
    (["--device=abacus"], "device must be one of this machine's (cpu, cuda, cuda:1), got 'abacus'"),
    (["--image-size=8"], "image_size must be None but for folders and shards of images, got 8"),
    (["--data-dir=x"], "data_dir must be None but for fashion-mnist and torchvision, got 'x'"),
    (["--threads=0"], "threads must be at least 1, got 0"),
    (["--resume"], "out must be a directory of fastdiff train"),
])  # fmt: skip
def test_refusals(tmp_path, capsys, options, message):
    assert train(save_images(tmp_path / "a.npz"), tmp_path / "a", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastdiff: {message}") and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_images_that_are_not_square(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", np.zeros((3, 4, 6), np.uint8))
    assert train(tmp_path / "a.npz", tmp_path / "a") == 2
    assert "data must hold square images, got [4, 6]" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(tmp_path, capsys):
    data = save_images(tmp_path / "a.npz")
    settings = ["--sample-every=0", "--no-tensorboard"]
    assert train(data, tmp_path / "a", "--steps=2", *settings) == 0
    before = weights(tmp_path / "a")
    assert train(data, tmp_path / "a", "--steps=2", *settings) == 2
    assert "out must be a new or empty directory" in capsys.readouterr().err
    assert train(data, tmp_path / "a", "--steps=3", "--resume", "--lr=0.1", *settings) == 2
    assert "lr must be as in the run to resume, 0.0002, got 0.1" in capsys.readouterr().err
    assert train(save_images(tmp_path / "b.npz", 8), tmp_path / "a", "--steps=3", "--resume", *settings) == 2
    assert "images must be as in the run to resume" in capsys.readouterr().err
    assert weights(tmp_path / "a") == before


def test_fashion_mnist_that_is_absent(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    assert train("fashion-mnist", tmp_path / "a") == 2
    assert "run `apt-get install dataset-fashion-mnist`" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--channel-mult=1,b", "--schedule=cubic", "--prediction=noise", "--steps=many"])
def test_wrong_usage(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as status:
        train("digits", tmp_path / "a", option)
    assert status.value.code == 2 and option.partition("=")[0] in capsys.readouterr().err
