"""JSON lines, and TensorBoard's files as TensorBoard reads them."""

import json

import numpy as np
import pytest

from fastdiff.training.metrics import Metrics


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(directory / "tensorboard"))
    return found.Reload()


def run(directory, steps, since=0, tensorboard=True):
    metrics = Metrics(directory, since, tensorboard)
    for step in steps:
        metrics.log(step, loss=1 / step, lr=0.5)
    metrics.close()


def test_json_lines(tmp_path):
    run(tmp_path, [1, 2], tensorboard=False)
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0, "lr": 0.5}, {"step": 2, "loss": 0.5, "lr": 0.5}]
    assert not (tmp_path / "tensorboard").exists()


def test_lines_can_be_read_at_once(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.log(1, loss=2.0)
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    metrics.close()


def test_tensorboard_reads_them_back(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (10, 20):
        metrics.log(step, loss=1 / step, lr=0.5)
    metrics.image(20, np.full((6, 8), 200, np.uint8))
    metrics.image(30, np.zeros((6, 8, 3), np.uint8))
    metrics.close()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [
        (10, pytest.approx(0.1)), (20, pytest.approx(0.05)),
    ]  # fmt: skip
    assert [event.value for event in found.Scalars("lr")] == [0.5, 0.5]
    assert [(event.step, event.width, event.height) for event in found.Images("samples")] == [(20, 8, 6), (30, 8, 6)]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    run(tmp_path, [10, 20, 30, 40])
    run(tmp_path, [30, 50], since=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 50]
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [10, 20, 30, 50]


def test_a_line_cut_off_is_dropped(tmp_path):
    run(tmp_path, [10, 20], tensorboard=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')
    run(tmp_path, [30], since=20, tensorboard=False)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
