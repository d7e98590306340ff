"""What a run says of itself: metrics as JSON lines and to TensorBoard."""

import json
from pathlib import Path


class Metrics:
    """log(step, loss=..., ...) appends {"step": ..., "loss": ...} to metrics.jsonl, and writes TensorBoard scalars.

    Resumed at step s, lines of later steps (of a run cut off after its last checkpoint) are dropped first.
    """

    def __init__(self, directory, first_step=0, tensorboard=True):
        self.path = Path(directory) / "metrics.jsonl"
        _drop_from(self.path, first_step)
        self.file = open(self.path, "a")  # noqa: SIM115
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=first_step)

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


def _drop_from(path, step):
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the line a killed run was writing
    path.write_text("".join(line + "\n" for line in kept))
