"""`fastdiff sample`: what is drawn, where it goes, and what is refused before any work."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import GaussianProcess, Sampler, cli, schedules
from fastdiff.cli import processes, runs
from fastdiff.data import load
from fastdiff.data.images import grid, to_uint8
from fastdiff.samplers import ClassifierFree, ddpm
from fastdiff.samplers.solvers import SOLVERS
from tests.cli.runs import save_images, train


@pytest.fixture(scope="module", params=[1, 3])
def run(request, tmp_path_factory):
    """A grey and a coloured run of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    data = save_images(folder / "a.npz", channels=request.param)
    assert train(data, folder / "run", "--steps=3", "--lr=0.1", "--sample-every=0", "--no-tensorboard") == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def one_thread():
    with runs.threads(1):
        yield


def sample(run, *options):
    return cli.main(["sample", str(run), "--quiet", *map(str, options)])


def expected(run, n, seed, steps=None):
    model, process = runs.load_run(run)
    return Sampler(model, process, steps=steps).sample(n, seed=seed)


def test_a_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert sample(run, "-n", 5, "--seed", 7, "--out", out) == 0
    assert f"5 samples: {out}" in capsys.readouterr().out
    sheet = grid(expected(run, 5, 7))
    factor = 512 // max(sheet.shape[:2])
    assert np.array_equal(np.asarray(Image.open(out)), sheet.repeat(factor, 0).repeat(factor, 1))
    assert [path.name for path in out.parent.iterdir()] == ["grid.png"]


def test_an_array_in_batches(run, tmp_path):
    assert sample(run, "-n", 5, "--seed", 7, "--out", tmp_path / "a.npz", "--batch-size", 2, "--steps", 4) == 0
    found, right = load(tmp_path / "a.npz").images, to_uint8(expected(run, 5, 7, steps=4))
    assert found.shape == right.shape and (found.int() - right.int()).abs().max() <= 1


def test_a_folder_of_files(run, tmp_path):
    assert sample(run, "-n", 3, "--out", tmp_path / "images") == 0
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    right = to_uint8(expected(run, 3, 0)).permute(0, 2, 3, 1).numpy()
    for i in range(3):
        found = np.asarray(Image.open(tmp_path / "images" / f"{i:06d}.png"))
        assert np.array_equal(found.reshape(right[i].shape), right[i])
    assert torch.equal(load(tmp_path / "images").images, to_uint8(expected(run, 3, 0)))


def test_a_seed_is_always_the_same(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert sample(run, "-n", 2, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_the_process_is_that_of_the_run(run):
    model, process = runs.load_run(run)
    assert torch.equal(process.betas, schedules.linear(25)) and not model.training
    assert (process.prediction, process.variance) == ("eps", "fixed_small")


def test_threads(run, tmp_path, monkeypatch):
    """Those of the run, or of the option; afterwards torch has what it had."""
    seen, whole = [], Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda *a, **k: (seen.append(torch.get_num_threads()), whole(*a, **k))[1])
    told = json.loads((run / "config.json").read_text())
    assert told["threads"] == 1
    for threads, option in ((None, []), (2, []), (2, ["--threads=3"])):
        (run / "config.json").write_text(json.dumps({**told, "threads": threads}))
        assert sample(run, "-n", 1, "--out", tmp_path / "a.png", "--steps=1", *option) == 0
    (run / "config.json").write_text(json.dumps(told))
    assert list(dict.fromkeys(seen)) == [1, 2, 3] and torch.get_num_threads() == 1


@pytest.mark.parametrize("options", [
    dict(schedule="linear", num_timesteps=30, prediction="v", variance="fixed_large"),
    dict(schedule="cosine", num_timesteps=10, prediction="x0", variance="fixed_small"),
])  # fmt: skip
def test_processes(options):
    process = processes.make(options)
    expected = GaussianProcess(getattr(schedules, options["schedule"])(options["num_timesteps"]), options["prediction"])
    assert torch.equal(process.betas, expected.betas) and process.prediction == expected.prediction
    assert process.variance == options["variance"]
    with pytest.raises(ValueError, match=r"schedule must be one of linear, .*, got 'cubic'"):
        processes.make({**options, "schedule": "cubic"})


def test_the_bar(run, tmp_path, capsys):
    assert cli.main(["sample", str(run), "-n", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert "25/25" in capsys.readouterr().err


@pytest.mark.parametrize("process", [None, "linear", {"schedule": "linear"}])
def test_a_run_that_tells_no_process(run, tmp_path, capsys, process):
    """As `fastdiff.training.train` leaves it where nobody told its `settings`."""
    (tmp_path / "run").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    told = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**told, "process": process}))
    assert sample(tmp_path / "run", "--out", tmp_path / "a.png") == 2
    assert "fastdiff: run must tell its process in config.json as fastdiff train does" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["-n=0"], "n must be at least 1, got 0"),
    (["--out=a.jpg"], "out must end in .png or .npz, or be a folder, got 'a.jpg'"),
    (["--batch-size=0"], "batch_size must be an int of at least 1, got 0"),
    (["--steps=26"], "steps must be an int in [1, 25], got 26"),
    (["--seed=18446744073709551616"], "seed must be in [-2**63, 2**64)"),
    (["--spacing=leading"], "steps must be a number with spacing leading, got None"),
    (["--steps=ddim11"], "timesteps must be 'ddim' and a number of steps that an integer stride gives, got 11"),
    (["--threads=0"], "threads must be at least 1, got 0"),
    (["--solver=dpmm"], "solver must be one of"),
    (["--option=eta=0.5"], "options must be among the solver's (none), got 'eta'"),
    (["--class=3"], "class must not be given for a model without classes, got 3"),
    (["--guidance=2"], "guidance must be ClassifierFree(w, uncond=...) for a model without null_condition"),
    (["--null-class=2"], "null-class must not be given without guidance, got 2"),
    (["--clip=-1"], "clip must be a positive number, DynamicThreshold or None, got -1.0"),
    (["--device=abacus"], "device must be one of this machine's"),
])  # fmt: skip
def test_refusals(run, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert sample(run, *options) == 2
    assert capsys.readouterr().err.startswith(f"fastdiff: {message}")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_sampling(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Sampler, "sample", None)
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "a.png", tmp_path / "file", tmp_path / "file" / "a.png"):
        assert sample(run, "--out", out) == 2
        assert str(out if out.name != "a.png" else tmp_path) in capsys.readouterr().err


def test_a_folder_in_use_is_refused(run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").touch()
    assert sample(run, "--out", tmp_path / "images") == 2
    assert "out must be a new or empty folder" in capsys.readouterr().err


# ---- What the sampler is told ----


class Conditional(torch.nn.Module):
    """A network with three classes and one for none, that knows no other data than its label."""

    sample_shape, config = (1, 4, 4), SimpleNamespace(num_classes=4)

    def forward(self, x, t, y):
        return (x - (y.view(-1, 1, 1, 1) - 1) / 2) * 0.5 + 0 * t.view(-1, 1, 1, 1)


@pytest.fixture
def conditional(run, monkeypatch):
    load = runs.load_run
    monkeypatch.setattr(runs, "load_run", lambda *a: (Conditional(), load(*a)[1]))
    return run


def test_labels_lie_beside_the_images(conditional, tmp_path):
    assert sample(conditional, "-n", 5, "--class", 2, "--out", tmp_path / "a.npz", "--batch-size", 2) == 0
    with np.load(tmp_path / "a.npz") as found:
        assert found["arr_0"].shape == (5, 4, 4, 1) and found["arr_0"].dtype == np.uint8
        assert found["arr_1"].tolist() == [2] * 5 and found["arr_1"].dtype == np.int64
        process = runs.load_run(conditional)[1]
        right = Sampler(Conditional(), process).sample(5, condition=2)
        assert np.array_equal(found["arr_0"], to_uint8(right).permute(0, 2, 3, 1).numpy())


def test_random_classes_belong_to_seed_and_sample(conditional, tmp_path):
    labels = {}
    for name, n, seed in (("a", 40, 1), ("b", 20, 1), ("c", 40, 2)):
        out = tmp_path / f"{name}.npz"
        assert sample(conditional, "-n", n, "--seed", seed, "--class", "random", "--steps=1", "--out", out) == 0
        labels[name] = np.load(out)["arr_1"]
    assert set(labels["a"]) == {0, 1, 2, 3} and np.array_equal(labels["a"][:20], labels["b"])
    assert not np.array_equal(labels["a"], labels["c"])


def test_guidance_and_clip(conditional, tmp_path):
    options = ["--class=2", "--guidance=3", "--null-class=3", "--clip=none", "--steps=5"]
    assert sample(conditional, "-n", 3, "--out", tmp_path / "a.npz", *options) == 0
    guidance, process = ClassifierFree(3.0, uncond=3), runs.load_run(conditional)[1]
    right = Sampler(Conditional(), process, steps=5, guidance=guidance, clip=None).sample(3, condition=2)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], to_uint8(right).permute(0, 2, 3, 1).numpy())


def test_a_null_class_that_the_network_does_not_know_is_refused(conditional, tmp_path, capsys):
    assert sample(conditional, "--out", tmp_path / "a.npz", "--class=2", "--guidance=3", "--null-class=4") == 2
    assert capsys.readouterr().err.startswith("fastdiff: null-class must be in [0, 4), got 4")
    assert not list(tmp_path.glob("a.npz*"))


@pytest.mark.parametrize("options, times", [
    (["--steps=5"], [24, 18, 12, 6, 0]), (["--steps=5", "--spacing=leading"], [20, 15, 10, 5, 0]),
    (["--steps=5", "--spacing=trailing"], [24, 19, 14, 9, 4]), (["--steps=2,3"], [24, 19, 13, 12, 0]),
    (["--steps=ddim5"], [20, 15, 10, 5, 0]),
])  # fmt: skip
def test_steps_and_their_spacing(run, tmp_path, monkeypatch, options, times):
    seen, whole = [], Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda self, *a, **k: (seen.append(self.plan), whole(self, *a, **k))[1])
    assert sample(run, "-n", 1, "--out", tmp_path / "a.png", *options) == 0
    assert seen[0].time.tolist() == times


def test_a_solver_with_options(run, tmp_path, monkeypatch):
    def noisy(process, timesteps=None, *, clip=1.0, factor=1.0, name="a"):
        assert name == "b"
        return ddpm(process, timesteps, clip=clip).replace(std=[factor] * 4 + [0])

    monkeypatch.setitem(SOLVERS, "noisy", noisy)
    options = ["--solver=noisy", "--option=factor=0.25", "--option", "name=b", "--steps=5"]
    assert sample(run, "-n", 3, "--out", tmp_path / "a.npz", *options) == 0
    model, process = runs.load_run(run)
    right = Sampler(model, process, noisy, steps=5, factor=0.25, name="b").sample(3)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], to_uint8(right).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("text, value", [("eta=0.5", 0.5), ("a=True", True), ("a=[1, 2]", [1, 2]), ("a=heun", "heun")])
def test_options_are_literals_or_texts(text, value):
    assert cli.sample._option(text)[1] == value


@pytest.mark.parametrize("options, message", [
    ([], "class must be in [0, 4), or random, for this model, got none"),
    (["--class=4"], "class must be in [0, 4), or random, got 4"),
    (["--class=1", "--guidance=2"], "guidance must be ClassifierFree"),
])  # fmt: skip
def test_class_refusals(conditional, tmp_path, capsys, options, message):
    assert sample(conditional, "--out", tmp_path / "a.png", *options) == 2
    assert capsys.readouterr().err.startswith(f"fastdiff: {message}") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--option=eta", "--option=1=2", "--class=cat", "--clip=much"])
def test_wrong_usage(run, option, capsys):
    with pytest.raises(SystemExit):
        sample(run, option)
    assert option.split("=")[0].strip("-") in capsys.readouterr().err


def test_what_is_no_run(run, tmp_path, capsys):
    assert sample(tmp_path) == 2
    assert "run must be a directory of fastdiff train" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert sample(tmp_path) == 2
    assert "run must have been trained" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert sample(tmp_path) == 2
    assert "path must be a whole safetensors file" in capsys.readouterr().err
