"""The clock of the benchmarks on a GPU, with events that a list of times stands for."""

import pytest
import torch

from benchmarks.device_clock import DeviceClock


def test_stretches_are_added_up(monkeypatch):
    times, said = iter([5.0, 7.5, 8.0]), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(times)
            said.append("record")

        def synchronize(self):
            said.append("synchronize")

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = DeviceClock()
    assert [clock() for _ in range(3)] == pytest.approx([0, 0.0025, 0.003])
    assert said == ["record", "synchronize"] * 3
