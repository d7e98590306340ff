"""`fastdiff train` told by a file, of classes, with learned variances, on two ranks."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from fastdiff import cli, load_unet
from fastdiff.cli import processes
from fastdiff.cli.flags import RUN
from fastdiff.processes import VPSDE
from fastdiff.processes.continuous import ContinuousProcess
from fastdiff.training import TrainConfig
from tests.cli.runs import TINY, save_images, train

SHORT = ["--steps=3", "--sample-every=0", "--no-tensorboard"]


def config(out):
    return json.loads((out / "config.json").read_text())


def save_labelled(path):
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    np.savez(path, images=images, labels=np.arange(9) % 3)
    return path


def test_every_field_has_a_flag():
    assert list(RUN) == [field.name for field in fields(TrainConfig)]


@pytest.mark.parametrize("schedule", processes.SCHEDULES)
def test_schedules(tmp_path, schedule):
    data = save_images(tmp_path / "a.npz")
    assert train(data, tmp_path / "a", *SHORT, f"--schedule={schedule}") == 0
    words = ["sample", str(tmp_path / "a"), "-n2", "--steps=2", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "a.png")]) == 0
    assert config(tmp_path / "a")["process"]["schedule"] == schedule


SDES = {
    "vp": ["--beta-max=15"],
    "subvp": ["--prediction=v"],
    "ve": ["--sigma-max=9", "--timesteps=stratified"],
    "ncsn": ["--num-timesteps=4", "--sigma-max=2", "--timesteps=loss-aware", "--weighting=min-snr"],
}


@pytest.mark.parametrize("name", SDES)
def test_score_models(tmp_path, name, monkeypatch, capsys):
    """Trained, resumed, made again from its own config.json, drawn on the way and afterwards."""
    monkeypatch.setattr(ContinuousProcess, "num_timesteps", 4)  # calls of the network for a sample
    tiny = [word for word in TINY if "num-timesteps" not in word]
    words = ["train", "--data", save_images(tmp_path / "a.npz"), *tiny, "--quiet", "--threads=1", "--no-tensorboard"]
    words += [f"--process={name}", *SDES[name], "--sample-every=2"]
    assert cli.main([*words, "--steps=2", "--out", str(tmp_path / "a")]) == 0
    assert cli.main([*words, "--steps=4", "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert (tmp_path / "a" / "samples" / "0000004.png").exists()
    again = ["train", "--config", str(tmp_path / "a" / "config.json"), "--out", str(tmp_path / "b"), "--quiet"]
    assert cli.main(again) == 0 and config(tmp_path / "a") == config(tmp_path / "b")
    told = config(tmp_path / "a")["process"]
    assert told["process"] == name and told.keys() == {"process", *processes.OPTIONS[name]}
    assert cli.main(["sample", str(tmp_path / "a"), "-n2", "--quiet", "--out", str(tmp_path / "a.npz")]) == 0
    assert cli.main(["evaluate", "bpd", str(tmp_path / "a")]) == 2
    assert "run must be of process ddpm for bpd, got " in capsys.readouterr().err


def test_what_a_process_is_told(capsys):
    """Its own options reach it; those of another are refused."""
    vp = processes.make(processes.settled({"process": "vp", "beta_max": 15.0}, {"process": "vp", "beta_max": 15.0}))
    assert (type(vp), vp.beta_max, vp.beta_min, vp.prediction) == (VPSDE, 15.0, 0.1, "eps")
    told = {"process": "ncsn", "num_timesteps": 7, "sigma_min": 0.1}
    ncsn = processes.make(processes.settled(told, {**processes.OPTIONS["ddpm"], **told}))
    assert (ncsn.num_timesteps, ncsn.prior_std) == (7, 1.0) and ncsn.sigma[-1].item() == pytest.approx(0.1)
    ve = processes.make({"process": "ve", "sigma_min": 0.01, "sigma_max": 9.0, "prediction": "eps"})
    assert (ve.prior_std, ve.label(1.0).item()) == (9.0, 999.0)
    assert cli.main(["train", "--data=digits", "--out=x", "--process=vp", "--schedule=cosine"]) == 2
    message = "schedule must not be given for process vp (beta_min, beta_max, prediction), got 'cosine'"
    assert message in capsys.readouterr().err
    assert cli.main(["train", "--data=digits", "--out=x", "--sigma-max=3"]) == 2
    assert "sigma_max must not be given for process ddpm" in capsys.readouterr().err
    assert cli.main(["train", "--data=digits", "--out=x", "--process=ve", "--objective=vlb"]) == 2
    assert "objective must be simple for a VESDE, got 'vlb'" in capsys.readouterr().err


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_learned_variances(tmp_path, variance):
    """The network has twice the channels, the objective is the hybrid, and the run can be sampled."""
    out = tmp_path / "a"
    assert train(save_images(tmp_path / "a.npz"), out, *SHORT, f"--variance={variance}") == 0
    assert config(out)["objective"] == "hybrid" and load_unet(out / "model.safetensors").config.out_channels == 2
    assert cli.main(["sample", str(out), "-n2", "--steps=3", "--quiet", "--out", str(tmp_path / "b.png")]) == 0
    told = [f"--variance={variance}", "--objective=vlb", "--timesteps=loss-aware"]
    assert train(save_images(tmp_path / "a.npz"), tmp_path / "b", *SHORT, *told) == 0
    assert config(tmp_path / "b")["objective"] == "vlb"


def test_classes(tmp_path, capsys):
    """Grids and samples of each class; with guidance the label of none is known."""
    out, grid = tmp_path / "a", str(tmp_path / "c.npz")
    assert train(save_labelled(tmp_path / "a.npz"), out, "--steps=3", "--class-conditional", "--no-tensorboard") == 0
    told = config(out)
    assert (told["classes"], told["model"]["num_classes"], told["label_dropout"]) == (3, 4, 0.1)
    sample = ["sample", str(out), "-n4", "--steps=3", "--quiet"]
    assert cli.main([*sample, "--class=2", "--guidance=2", "--out", grid]) == 0
    assert cli.main([*sample, "--class=random", "--out", str(tmp_path / "d.npz")]) == 0
    assert np.load(tmp_path / "d.npz")["arr_1"].max() < 3
    assert cli.main([*sample, "--class=3", "--out", str(tmp_path / "e.npz")]) == 2
    assert "class must be in [0, 3), or random, got 3" in capsys.readouterr().err
    again = ["train", "--config", str(out / "config.json"), "--out", str(tmp_path / "again"), "--quiet"]
    assert cli.main(again) == 0 and config(tmp_path / "again")["labels"] == config(out)["labels"]


def test_classes_need_labels(tmp_path, capsys):
    data = save_images(tmp_path / "a.npz")
    assert train(data, tmp_path / "a", "--class-conditional") == 2
    assert "data must have labels for class_conditional" in capsys.readouterr().err
    assert train(data, tmp_path / "a", "--label-dropout=0.1") == 2
    assert "label_dropout must not be given without class_conditional, got 0.1" in capsys.readouterr().err


# ---- Files ----

TOML = """
batch-size = 3
flip = true
betas = [0.8, 0.99]
[process]
schedule = "cosine"
[model]
channel_mult = [1, 2]
"""
YAML = "batch_size: 3\nflip: true\nbetas: [0.8, 0.99]\nschedule: cosine\nchannel_mult: [1, 2]\n"
JSON = json.dumps({"batch_size": 3, "flip": True, "betas": [0.8, 0.99], "schedule": "cosine", "channel_mult": [1, 2]})


@pytest.mark.parametrize("suffix, text", [("toml", TOML), ("yaml", YAML), ("json", JSON)])
def test_a_file_is_heard_and_the_command_line_wins(tmp_path, suffix, text):
    pytest.importorskip({"toml": "tomllib", "yaml": "yaml"}.get(suffix, "json"))
    path = tmp_path / f"run.{suffix}"
    path.write_text(text)
    tiny = [word for word in TINY if "channel-mult" not in word and "batch-size" not in word]
    words = ["train", "--data", save_images(tmp_path / "a.npz"), "--out", str(tmp_path / "a"), "--quiet", *tiny, *SHORT]
    assert cli.main([*words, "--config", str(path), "--no-flip", "--threads=1"]) == 0
    told = config(tmp_path / "a")
    assert (told["batch_size"], told["flip"], told["betas"]) == (3, False, [0.8, 0.99])
    assert told["process"]["schedule"] == "cosine" and told["model"]["channel_mult"] == [1, 2]


def test_a_runs_own_config_makes_the_run_again(tmp_path):
    data = save_images(tmp_path / "a.npz")
    assert train(data, tmp_path / "a", *SHORT, "--variance=learned_range", "--seed=5") == 0
    again = ["train", "--config", str(tmp_path / "a" / "config.json"), "--out", str(tmp_path / "b"), "--quiet"]
    assert cli.main(again) == 0
    assert config(tmp_path / "a") == config(tmp_path / "b")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("name, text, message", [
    ("a.toml", "stepz = 3", "config must hold options of fastdiff train, got 'stepz'"),
    ("a.toml", "steps = ", "config must be TOML, got "),
    ("a.json", "[1]", "config must hold a table of options, got list"),
    ("a.ini", "", "config must be a file in .toml, .json, .yaml, .yml, got "),
    ("a.json", '{"steps": "many"}', "steps must be a positive int, got 'many'"),
    ("a.json", '{"threads": "4"}', "threads must be an int, got '4'"),
    ("a.json", '{"num_samples": true}', "num_samples must be an int, got True"),
    ("a.json", '{"class_conditional": "no"}', "class_conditional must be true or false, got 'no'"),
    ("a.json", '{"sigma_min": "0.1", "process": "ve"}', "sigma_min must be a number, got '0.1'"),
    ("a.json", '{"heads": "4"}', "heads must be a positive int, got '4'"),
    ("a.json", '{"resamp_with_conv": 1}', "config must hold options of fastdiff train, got 'resamp_with_conv'"),
])  # fmt: skip
def test_bad_files(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    data = save_images(tmp_path / "a.npz")
    assert train(data, tmp_path / "a", "--config", str(tmp_path / name)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_what_must_be_given(tmp_path, capsys):
    assert cli.main(["train", "--data=digits"]) == 2
    assert "out must be given, as --out or in --config" in capsys.readouterr().err


# ---- Ranks ----


def test_torchrun(tmp_path):
    """Two ranks make one run: one config, one log, one grid a time, and the weights of one rank up to rounding."""
    data = save_images(tmp_path / "a.npz")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastdiff"]
    words = ["train", "--data", data, *TINY, "--quiet", "--threads=1", "--steps=3", "--sample-every=2", "--lr=1e-2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *words, "--out", str(tmp_path / "two")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained:") == 1
    assert train(data, tmp_path / "one", *words[4:]) == 0
    assert config(tmp_path / "one") == config(tmp_path / "two")
    assert len(list((tmp_path / "two" / "samples").iterdir())) == 2
    a, b = (load_unet(tmp_path / name / "model.safetensors").state_dict() for name in ("one", "two"))
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-3, atol=1e-4, err_msg=name)
