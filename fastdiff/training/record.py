"""What is said of a run: means over the steps since it was last asked, summed on the device."""

import time

import torch

_QUARTERS = 4  # of the timesteps, whose losses are told apart


class Record:
    """note(loss [B], share [B], norm) at each step, share = t / T; take(step, batch_size) -> the means, by name.

    take waits for the device and, where there are several ranks, for all of them.
    """

    def __init__(self, device, ranks, step):
        self.ranks = ranks
        # Steps, loss, norm; then of each quarter its loss and its samples. They stay in their place.
        self._sums = torch.zeros(3 + 2 * _QUARTERS, dtype=torch.float64, device=device)
        self.pause(step)

    def pause(self, step):
        """Time is counted from here on."""
        self._since, self._step = time.perf_counter(), step

    def note(self, loss, share, norm):
        self._sums[0] += 1
        self._sums[1] += loss.mean()
        self._sums[2] += norm
        quarter = (share * _QUARTERS).long().clamp(0, _QUARTERS - 1)
        self._sums[3 : 3 + _QUARTERS].index_add_(0, quarter, loss.double())
        self._sums[3 + _QUARTERS :].index_add_(0, quarter, torch.ones_like(loss, dtype=torch.float64))

    def take(self, step, batch_size):
        steps, loss, norm, *quarters = self.ranks.mean(self._sums).tolist()
        speed = (step - self._step) * batch_size / (time.perf_counter() - self._since)
        said = {"loss": loss / steps, "gradient_norm": norm / steps, "images_per_s": round(speed, 1)}
        for i, (total, count) in enumerate(zip(quarters[:_QUARTERS], quarters[_QUARTERS:], strict=True)):
            if count:
                said[f"loss_q{i + 1}"] = total / count
        self._sums.zero_()
        self.pause(step)
        return said
