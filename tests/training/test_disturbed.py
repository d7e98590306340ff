"""Runs that are killed, run out of disk, or change their number of ranks."""

import itertools
import json
import random
import signal

import pytest
import torch
from safetensors.torch import load_file

from fastdiff.training.checkpoint import checkpoints
from tests.training.disturbed import run, start

STEPS = 20


def saved(out):
    return load_file(next(iter(checkpoints(out).values())) / "state.safetensors")


def assert_same_run(a, b):
    assert list(checkpoints(a)) == list(checkpoints(b))
    one, two = saved(a), saved(b)
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert steps_logged(a) == steps_logged(b)


def steps_logged(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def fed(out, world):
    """Checksums of what each step's global batch was fed as."""
    parts = [json.loads((out / f"fed-{rank}.json").read_text()) for rank in range(world)]
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def killed_and_resumed(out, steps, kills, seed):
    """Killed at random steps, and at random moments of saving, every third time; at last left alone."""
    choose = random.Random(seed)
    for kill in range(kills):
        how, number = ("sync", choose.randint(1, 12)) if kill % 3 == 0 else ("step", choose.randint(1, 8))
        [(status, error)] = start(out, steps, how, number)
        assert status == -signal.SIGKILL, error
    assert start(out, steps, "whole") == [(0, "")]


def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    run(tmp_path / "whole", STEPS)
    killed_and_resumed(tmp_path / "killed", STEPS, 3, seed=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_runs_killed_thirty_times_end_as_undisturbed_ones(tmp_path):
    run(tmp_path / "whole", 300)
    killed_and_resumed(tmp_path / "killed", 300, 30, seed=1)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_full_disk(tmp_path):
    """An error that says so; the older checkpoint and the log are whole, and with room the run goes on to its end."""
    out = tmp_path / "full"
    [(status, error)] = start(out, STEPS, "full", 4096)
    assert status == 1 and "OSError" in error.splitlines()[-1]
    assert list(checkpoints(out)) == [3] and not list(out.rglob("*.part"))
    assert steps_logged(out) == [1, 2, 3, 4, 5, 6]
    assert start(out, STEPS, "whole") == [(0, "")]
    run(tmp_path / "whole", STEPS)
    assert_same_run(tmp_path / "whole", out)


def start_two(out, steps, how):
    assert [status for status, _ in start(out, steps, how, world=2)] == [0, 0]


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", ["whole", "fsdp"])
def test_ranks_are_fed_the_same(tmp_path, how):
    """Images, noise, timesteps, flips and dropout of a global batch are those of one rank; also after changes of ranks.

    "whole": by DDP. "fsdp": each rank holds its part of the weights. A run of one rank goes on so, and then as before.
    """
    run(tmp_path / "one", 8)
    start_two(tmp_path / "two", 8, how)
    one = fed(tmp_path / "one", 1)
    assert one == fed(tmp_path / "two", 2) and len({x for step in one for x in step}) == 64
    run(tmp_path / "changed", 3)
    start_two(tmp_path / "changed", 6, how)
    assert one[3:6] == fed(tmp_path / "changed", 2)
    run(tmp_path / "changed", 8)
    assert one[6:] == fed(tmp_path / "changed", 1)
    for name in ("two", "changed"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
        for key, value in saved(tmp_path / "one").items():
            torch.testing.assert_close(value, saved(tmp_path / name)[key], rtol=1e-2, atol=1e-3, msg=f"{name} {key}")
        for key, value in load_file(tmp_path / name / "model.safetensors").items():
            assert torch.equal(value, saved(tmp_path / name)[f"ema.0.{key}"])  # the averaged weights
