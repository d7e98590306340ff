"""What train and sample share: a run's process, its model, its grids."""

import contextlib
from pathlib import Path

import torch

from ..data.images import grid, save_png
from ..models import load_unet
from ..samplers import Sampler
from ..training.checkpoint import CONFIG, MODEL, read_config
from . import processes


def default_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(name=None):
    """The torch.device of that name; by default the GPU where there is one."""
    name = name or default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one of this machine's (cpu, cuda, cuda:1), got {name!r}: {reason}") from None


@contextlib.contextmanager
def threads(count=None):
    """Torch works on so many CPU threads; None: as many as it likes."""
    if count is not None and count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_run(directory, device="cpu"):
    """(model, process) of a run: its averaged weights, ready for `fastdiff.Sampler`."""
    config = read_config(directory)
    path = Path(directory) / MODEL
    if not path.exists():
        raise FileNotFoundError(f"run must have been trained, got {str(directory)!r} without {MODEL}")
    process = _process(config, directory)
    return with_classes(load_unet(path, device=device), config.get("classes")), process


def _process(config, directory):
    """That of a run's config, which a run of `fastdiff.training.train` need not tell."""
    options = config.get("process")
    with contextlib.suppress(TypeError, KeyError):
        if isinstance(options, dict):
            return processes.make(options)
    got = f"{options!r} in {str(directory)!r}"
    raise ValueError(f"run must tell its process in {CONFIG} as fastdiff train does, got {got}")


def with_classes(model, classes):
    """The model, which says that it knows so many classes, and none as the label after them."""
    if classes is not None:
        model.num_classes = model.null_condition = classes
    return model


class Grids:
    """draw(model, step) for `fastdiff.training.train`: samples of always the same noise, in out/samples/<step>.png.

    Of a model with classes, sample i is of class i modulo their number.
    """

    def __init__(self, process, out, num_samples, seed, classes=None):
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.process, self.out, self.num_samples, self.seed = process, out / "samples", num_samples, seed
        self.condition = None if classes is None else torch.arange(num_samples) % classes

    def __call__(self, model, step):
        sampler = Sampler(model, self.process, processes.solver(self.process))
        image = grid(sampler.sample(self.num_samples, seed=self.seed, condition=self.condition))
        self.out.mkdir(exist_ok=True)
        save_png(image, self.out / f"{step:07d}.png")
        return image
