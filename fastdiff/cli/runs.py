"""What train and sample share: a run's process, its model, its grids."""

from pathlib import Path

from ..data.images import grid, save_png
from ..models import load_unet
from ..processes import GaussianProcess, schedules
from ..samplers import Sampler
from ..training import checkpoint


def make_process(options):
    """The process of {schedule, num_timesteps, prediction, variance}."""
    if options["schedule"] not in ("linear", "cosine"):
        raise ValueError(f"schedule must be linear or cosine, got {options['schedule']!r}")
    betas = getattr(schedules, options["schedule"])(options["num_timesteps"])
    return GaussianProcess(betas, prediction=options["prediction"], variance=options["variance"])


def load_run(directory, device="cpu"):
    """(model, process) of a run: its averaged weights, ready for `fastdiff.Sampler`."""
    config = checkpoint.read_config(directory)
    path = Path(directory) / checkpoint.MODEL
    if not path.exists():
        raise FileNotFoundError(f"run must have been trained, got {str(directory)!r} without {checkpoint.MODEL}")
    return load_unet(path, device), make_process(config["process"])


class Grids:
    """draw(model) for `fastdiff.training.train`: samples of always the same noise, in out/samples/<number>.png."""

    def __init__(self, process, out, num_samples, seed):
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.process, self.out, self.num_samples, self.seed = process, out / "samples", num_samples, seed

    def __call__(self, model):
        image = grid(Sampler(model, self.process).sample(self.num_samples, seed=self.seed))
        self.out.mkdir(exist_ok=True)
        save_png(image, self.out / f"{len(list(self.out.glob('*.png'))):04d}.png")
        return image
