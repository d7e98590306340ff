"""`fastdiff sample` on several processes, and cut off: the same bytes, nothing lost, nothing made twice."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import GaussianProcess, Sampler, cli, ops, schedules
from fastdiff.cli import runs
from fastdiff.ops import rng
from fastdiff.samplers import sharding
from fastdiff.samplers.sharding import Parts
from tests.cli.runs import save_images, train

N, BATCH = 11, 2  # an odd number, so that the last micro-batch is padded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = save_images(folder / "a.npz", channels=3)
    assert train(data, folder / "run", "--steps=3", "--lr=0.1", "--sample-every=0", "--no-tensorboard") == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def one_thread():
    with runs.threads(1):
        yield


def arguments(run, out, *options):
    return ["sample", str(run), "--quiet", f"-n={N}", "--seed=5", f"--batch-size={BATCH}", "--out", str(out), *options]


def on_ranks(world, arguments, die=None):
    """Exit codes of forked processes with torchrun's environment; die = (rank, parts): killed in writing the next."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(rank, world, port, arguments, die)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if die is not None and process.exitcode == -signal.SIGKILL:
            for other in processes:  # as torchrun ends the others
                other.terminate()
    return [process.exitcode for process in processes]


def _rank(rank, world, port, arguments, die):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    if die is not None and die[0] == rank:
        _die_while_writing(die[1])
    os._exit(cli.main(arguments))


def _die_while_writing(parts):
    """The next part after so many is half written when the process is killed."""
    save, left = np.save, [parts]

    def half(file, array):
        if not left[0]:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        save(file, array)

    sharding.np.save = half


def content(out):
    files = [out] if out.is_file() else sorted(out.iterdir())
    return {path.name if out.is_dir() else "": path.read_bytes() for path in files}


@pytest.fixture(scope="module", params=["a.npz", "a", "a.png"])
def whole(request, run, tmp_path_factory):
    """(name, bytes) of what one process writes."""
    out = tmp_path_factory.mktemp("whole") / request.param
    with runs.threads(1):
        assert cli.main(arguments(run, out)) == 0
    return request.param, content(out)


@pytest.mark.parametrize("world", [2, 4])
def test_more_processes_write_the_same_bytes(run, whole, tmp_path, world):
    name, expected = whole
    assert on_ranks(world, arguments(run, tmp_path / name)) == [0] * world
    assert content(tmp_path / name) == expected
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("worlds", [(1, 1), (1, 4), (4, 2)])
def test_killed_and_resumed(run, whole, tmp_path, worlds):
    name, expected = whole
    first, second = worlds
    codes = on_ranks(first, arguments(run, tmp_path / name), die=(0, 1))
    assert codes[0] == -signal.SIGKILL and not (tmp_path / name).exists()
    parts = tmp_path / f"{name}.parts"
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npy")}
    assert 1 <= len(list(parts.glob("*.part"))) <= first and 1 <= len(done) < 6  # others may be ended while they write
    kept = {name: (parts / name).read_bytes() for name in done}

    made = []
    with _watched(made):
        assert cli.main(arguments(run, tmp_path / name)) == 2  # not without --resume
        if second == 1:
            assert cli.main(arguments(run, tmp_path / name, "--resume")) == 0
        else:
            assert on_ranks(second, arguments(run, tmp_path / name, "--resume")) == [0] * second
    assert content(tmp_path / name) == expected
    assert not set(made) & {int(name[:6]) for name in kept}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@contextlib.contextmanager
def _watched(made):
    save = Parts.save
    Parts.save = lambda self, index, array: (made.append(index), save(self, index, array))
    try:
        yield
    finally:
        Parts.save = save


def test_killed_while_the_folder_was_put_together(run, tmp_path, monkeypatch):
    out = tmp_path / "a"
    monkeypatch.setattr(Parts, "remove", lambda self: None)
    assert cli.main(arguments(run, out)) == 0
    expected = content(out)
    (out / "000003.png").unlink()
    monkeypatch.undo()
    assert cli.main(arguments(run, out, "--resume")) == 0
    assert content(out) == expected and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_whole_run_is_left_as_it_is(run, tmp_path, capsys, monkeypatch):
    assert cli.main(arguments(run, tmp_path / "a.npz")) == 0
    before = (tmp_path / "a.npz").read_bytes()
    monkeypatch.setattr(Parts, "save", None)
    assert cli.main(arguments(run, tmp_path / "a.npz", "--resume")) == 0
    assert "whole already" in capsys.readouterr().out and (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize("name", ["a.npz", "a"])
def test_a_run_of_another_number_is_not_called_whole(run, tmp_path, capsys, name):
    assert cli.main([*arguments(run, tmp_path / name), "-n=2"]) == 0
    before = content(tmp_path / name)
    assert cli.main(arguments(run, tmp_path / name, "--resume")) == 2
    assert "fastdiff: out must be new, or hold the 11 samples of a finished run" in capsys.readouterr().err
    assert content(tmp_path / name) == before and [path.name for path in tmp_path.iterdir()] == [name]


def test_an_empty_folder_is_begun_with(run, tmp_path):
    (tmp_path / "a").mkdir()
    assert cli.main([*arguments(run, tmp_path / "a", "--resume"), "-n=2"]) == 0
    assert len(content(tmp_path / "a")) == 2


def test_a_run_that_trained_on_is_not_gone_on_with(run, tmp_path, capsys, monkeypatch):
    """Its first samples are of another network than the rest would be."""
    monkeypatch.setattr(Parts, "remove", lambda self: None)
    assert cli.main([*arguments(run, tmp_path / "a.npz"), "-n=2"]) == 0
    model = run / "model.safetensors"
    before = model.read_bytes()
    model.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        assert cli.main([*arguments(run, tmp_path / "a.npz", "--resume"), "-n=2"]) == 2
    finally:
        model.write_bytes(before)
    assert "model.safetensors must be as in the run to resume" in capsys.readouterr().err


@pytest.mark.parametrize("option, message", [
    ("--seed=6", "seed must be as in the run to resume, 5, got 6"),
    ("-n=12", "n must be as in the run to resume, 11, got 12"),
    ("--batch-size=3", "batch_size must be as in the run to resume, 2, got 3"),
    ("--steps=4", "steps must be as in the run to resume, None, got 4"),
])  # fmt: skip
def test_another_run_is_not_gone_on_with(run, tmp_path, capsys, option, message):
    out = tmp_path / "a.npz"
    assert on_ranks(1, arguments(run, out), die=(0, 1)) == [-signal.SIGKILL]
    assert cli.main(arguments(run, out, "--resume", option)) == 2
    assert message in capsys.readouterr().err


def test_sizes_of_micro_batches_share_their_noise(run, tmp_path):
    """Noise is bit-equal whatever the batch; images agree up to the network's arithmetic."""
    ids = torch.arange(7)
    for size in (1, 3):
        for start in range(0, 7, size):
            own = ops.normal((len(ids[start : start + size]), 3, 4, 4), rng.make_rng(5), ids[start : start + size])
            assert torch.equal(own, ops.normal((7, 3, 4, 4), rng.make_rng(5), ids)[start : start + size])
    arrays = []
    for size in (1, 4, 11):
        out = tmp_path / f"{size}.npz"
        assert cli.main([*arguments(run, out), f"--batch-size={size}", "--precision=fp32"]) == 0
        arrays.append(np.load(out)["arr_0"].astype(int))
    assert all(np.abs(array - arrays[0]).max() <= 1 for array in arrays)


# ---- The parts themselves ----


def test_parts_are_dealt_in_turn(tmp_path):
    parts = Parts(tmp_path / "p", 11, 2, {})
    parts.begin(False)
    dealt = [parts.of(rank, 4) for rank in range(4)]
    assert dealt == [[0, 4], [1, 5], [2], [3]] and list(parts.ids(5)) == [10] and list(parts.ids(1)) == [2, 3]
    parts.save(4, np.zeros((2, 1)))
    assert parts.of(0, 4) == [0] and parts.of(0, 1) == [0, 1, 2, 3, 5]
    with pytest.raises(ValueError, match="array must hold 1 samples, got 2"):
        parts.save(5, np.zeros((2, 1)))


def test_settings_go_last(tmp_path, monkeypatch):
    """Cut off while it is removed, the directory is still that of a run to go on with."""
    parts = Parts(tmp_path / "p", 4, 2, {"seed": 1})
    parts.begin(False)
    for index in range(2):
        parts.save(index, np.zeros((2, 1)))
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)
    parts.remove()
    assert [path.name for path in parts.folder.iterdir()] == [sharding.SETTINGS]
    assert json.loads((parts.folder / sharding.SETTINGS).read_text()) == {"seed": 1, "n": 4, "batch_size": 2}


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.setattr("torch.distributed.init_process_group", None)
    with sharding.ranks() as group:
        assert group == (0, 1, 0)
        group.barrier()


def test_a_seed_of_the_library_is_that_of_the_command(run, tmp_path):
    assert cli.main(arguments(run, tmp_path / "a.npz", "--precision=fp32")) == 0
    model, process = runs.load_run(run)
    samples = Sampler(model, process, precision="fp32").sample(N, seed=5, batch_size=BATCH)
    expected = ((samples + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], expected)
    assert isinstance(process, GaussianProcess) and torch.equal(process.betas, schedules.linear(25))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_under_torchrun(run, tmp_path, world):
    assert cli.main(arguments(run, tmp_path / "one.npz")) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["fastdiff", *arguments(run, tmp_path / "all.npz")]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2])
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
