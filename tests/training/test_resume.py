"""A resumed run has the bits of an uninterrupted one; Ctrl-C."""

import json
import os
import signal

import pytest
import torch

from fastdiff.training import Interrupted, train
from fastdiff.training.checkpoint import checkpoints
from fastdiff.training.interrupt import interrupts
from tests.training.runs import Killed, config, contents, killed_at, lines, run, saved, states_equal


@pytest.mark.parametrize("stop", [5, 7])
def test_a_resumed_run_has_the_same_bits(make_model, process, images, tmp_path, stop):
    """With dropout, flips and a falling learning rate; stopped at a checkpoint, or killed two steps after one."""
    options = config(flip=True, decay_to=0.1, steps=15, log_every=1)
    whole = run(make_model(dropout=0.3), process, images, tmp_path / "whole", options)

    with pytest.raises(Killed):
        run(killed_at(make_model(dropout=0.3), stop), process, images, tmp_path / "halves", options)
    resumed = run(make_model(7, dropout=0.3), process, images, tmp_path / "halves", options, resume=True)
    assert states_equal(resumed, whole)
    a, b = (saved(tmp_path / name) for name in ("whole", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
    timeless = [[{**line, "images_per_s": 0} for line in lines(tmp_path / name)] for name in ("whole", "halves")]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 15


def test_a_run_is_trained_by_one_process_at_a_time(make_model, process, images, tmp_path):
    """A second one would take the first one's steps out of its metrics, and its checkpoints from under it."""
    refused = r"out must be in use by no other process, got '.*a'"

    def second(model, step):
        before = contents(tmp_path / "a")
        with pytest.raises(ValueError, match=refused):
            run(make_model(), process, images, tmp_path / "a", options, resume=True)
        assert contents(tmp_path / "a") == before
        return images[0, 0].numpy()

    options = config(sample_every=6)
    run(make_model(), process, images, tmp_path / "a", options, draw=second)
    run(make_model(), process, images, tmp_path / "a", config(sample_every=6, steps=18), draw=second, resume=True)
    assert [line["step"] for line in lines(tmp_path / "a")] == [5, 10, 12, 15, 18]


def test_a_run_cut_off_before_its_first_checkpoint_begins_again(make_model, process, images, tmp_path):
    whole = run(make_model(), process, images, tmp_path / "whole")
    with pytest.raises(Killed):
        run(killed_at(make_model(), 3), process, images, tmp_path / "cut")
    assert states_equal(run(make_model(), process, images, tmp_path / "cut", resume=True), whole)


def test_a_finished_run_can_go_further(make_model, process, images, tmp_path):
    run(make_model(), process, images, tmp_path / "a", config(steps=6))
    assert run(make_model(1), process, images, tmp_path / "a", config(steps=6), resume=True) is not None
    further = run(make_model(1), process, images, tmp_path / "a", config(steps=12), resume=True)
    assert states_equal(further, run(make_model(), process, images, tmp_path / "b"))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["steps"] == 12


def test_a_damaged_checkpoint_is_refused(make_model, process, images, tmp_path):
    run(make_model(), process, images, tmp_path / "a")
    for path in checkpoints(tmp_path / "a").values():
        (path / "state.safetensors").write_bytes(b"damaged")
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match="resume must find a whole checkpoint of this run"):
        run(make_model(), process, images, tmp_path / "a", config(steps=20), resume=True)
    assert contents(tmp_path / "a") == before


def test_after_a_damaged_checkpoint_the_one_before_is_gone_on_from(make_model, process, images, tmp_path):
    """To the same end: steps are functions of their number."""
    whole = run(make_model(), process, images, tmp_path / "a")
    (checkpoints(tmp_path / "a")[12] / "state.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="passed over: resume must find a whole checkpoint"):
        resumed = run(make_model(1), process, images, tmp_path / "a", resume=True)
    assert states_equal(resumed, whole) and [line["step"] for line in lines(tmp_path / "a")] == [5, 10, 12]


@pytest.mark.parametrize("options, message", [
    ({"config": config(lr=0.5)}, r"lr must be as in the run to resume, 0\.01, got 0\.5"),
    ({"config": config(lr=0.5, flip=True)}, r"lr must be .* got 0\.5; flip must be .* False, got True"),
    ({"config": config(flip=True)}, "flip must be as in the run to resume, False, got True"),
    ({"settings": {"model": 2}}, "model must be as in the run to resume, 1, got 2"),
    ({"data": torch.zeros(20, 1, 4, 4, dtype=torch.uint8)}, "images must be as in the run to resume, .* got "),
])  # fmt: skip
def test_another_run_is_refused(make_model, process, images, tmp_path, options, message):
    run(make_model(), process, images, tmp_path / "a", settings={"model": 1})
    before = (tmp_path / "a" / "config.json").read_text()
    given = {"data": images, "config": config(), "settings": {"model": 1}, **options}
    with pytest.raises(ValueError, match=message):
        train(make_model(), process, out=tmp_path / "a", resume=True, progress=False, **given)
    assert (tmp_path / "a" / "config.json").read_text() == before


# ---- Ctrl-C ----


def test_ctrl_c_saves_and_stops(make_model, process, images, tmp_path):
    """Pressed within step 8: the step is finished, and the run goes on as if nothing had happened."""
    calls = []

    def press(*_):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    model = make_model()
    model.register_forward_pre_hook(press)
    with pytest.raises(Interrupted):
        run(model, process, images, tmp_path / "a")
    assert next(iter(checkpoints(tmp_path / "a"))) == 8
    assert [line["step"] for line in lines(tmp_path / "a")] == [5, 8]
    resumed = run(make_model(1), process, images, tmp_path / "a", resume=True)
    assert [line["step"] for line in lines(tmp_path / "a")] == [5, 8, 10, 12]
    assert states_equal(resumed, run(make_model(), process, images, tmp_path / "b"))


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not interrupted")
    assert signal.getsignal(signal.SIGINT) is before
