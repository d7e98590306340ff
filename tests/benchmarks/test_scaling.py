"""The curves of benchmarks/scaling.py, on few points: what must not grow does not."""

import pytest
import torch

from benchmarks import scaling

SMALL = dict(rounds=1, resolution=8)


def test_held_bytes_are_of_what_lives_at_a_time():
    kept = []

    def run():
        kept[:] = [torch.ones(1000) for _ in range(10)]
        for _ in range(10):
            torch.ones(1000)

    assert 40_000 < scaling.held_bytes(run) < 60_000


def test_memory_does_not_grow_with_the_steps():
    few, many = (row["held_bytes"] for row in scaling.measured("steps", [3, 12], batch=2, **SMALL))
    image, row = 4 * 2 * 3 * 8**2, 160  # a row of the plan: its coefficients, times and counters
    assert few > 3 * image  # it sees what the network makes
    assert many <= few + 9 * row


def test_memory_grows_with_the_batch():
    one, four = (row["held_bytes"] for row in scaling.measured("batch", [4, 16], steps=2, **SMALL))
    assert four == pytest.approx(4 * one, rel=0.2)


def test_a_plot_of_what_was_found(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"T": n, "seconds": 1.0, "held_bytes": 1 << 20} for n in (100, 1000)]
    scaling.plot({"T": rows}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
