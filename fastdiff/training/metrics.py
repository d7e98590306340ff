"""What a run says of itself: metrics as JSON lines and to TensorBoard."""

import json
from pathlib import Path

from ..files import whole


class Metrics:
    """log(step, loss=..., ...) appends {"step": ..., "loss": ...} to metrics.jsonl, and writes TensorBoard scalars.

    Resumed after `step` steps, whatever was said of later ones (by a run cut off after its last checkpoint) is dropped.
    """

    def __init__(self, directory, step=0, tensorboard=True):
        path = Path(directory) / "metrics.jsonl"
        _drop_after(path, step)
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=step + 1 if step else None)
        self.file = open(path, "a")  # noqa: SIM115

    def log(self, step, **values):
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def image(self, step, image):
        """A grid, uint8 [H, W] or [H, W, 3]."""
        if self.writer:
            self.writer.add_image("samples", image, step, dataformats="HW" if image.ndim == 2 else "HWC")

    def close(self):
        self.file.close()
        if self.writer:
            self.writer.close()


def _drop_after(path, step):
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the line that a killed run was writing
    with whole(path) as part:
        part.write_text("".join(line + "\n" for line in kept))
