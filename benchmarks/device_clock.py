"""A GPU's time, by CUDA events."""

import torch


class DeviceClock:
    """clock(): seconds that the device's current stream has taken by now, all work before it done."""

    def __init__(self):
        self.last, self.total = None, 0.0

    def __call__(self):
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        if self.last is not None:
            self.total += self.last.elapsed_time(now) / 1e3  # of short stretches: it is a float of milliseconds
        self.last = now
        return self.total
