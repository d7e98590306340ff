"""Train a DDPM, NCSN or score-SDE model on images: checkpoints, metrics and sample grids go to one directory.

Under torchrun each process takes its part of every batch, with DistributedDataParallel or, with --shard fsdp, FSDP2:

    torchrun --nproc-per-node 2 -m fastdiff train --data digits --out runs/digits

On several machines torchrun also wants --nnodes N and --rdzv-endpoint HOST:PORT, the same on each.
"""

import json
from pathlib import Path

from .flags import add_arguments
from .settings import gathered, make_settings

__all__ = ["add_arguments", "main"]


def main(args):
    from ..training import Interrupted, ranks
    from . import runs

    options = gathered(args)
    device = (options["device"] or runs.default_device()) if ranks.launched() else runs.device(options["device"])
    try:
        with runs.threads(options["threads"]), ranks.joined(device) as device:
            first = ranks.Ranks().first
            _train(options, args, device)
    except Interrupted:
        if first:
            print(f"\nsaved in {options['out']}; go on with the same command and --resume")
        return 130
    if first:
        out = options["out"]
        _plot(Path(out))
        print(f"trained: {out} (draw with `fastdiff sample {out} -n 64 --out grid.png`)")
    return 0


def _train(options, args, device):
    import torch

    from ..models import UNet
    from ..training import train
    from . import processes, runs

    data, classes = _data(options)
    config, process_options, model_config = make_settings(options, data.images, classes)
    process = processes.make(process_options)
    torch.manual_seed(config.seed)
    model = runs.with_classes(UNet(model_config).to(device), classes)
    names = ("data", "threads", "data_dir", "image_size", "on_error", "num_samples", "class_conditional")
    settings = {name: options[name] for name in names}
    settings |= {"process": process_options, "model": model_config.to_dict(), "classes": classes}
    grids = runs.Grids(process, Path(options["out"]), options["num_samples"], config.seed, classes)
    train(
        model, process, data, options["out"], config,
        settings=settings, draw=grids, resume=args.resume, progress=not args.quiet,
    )  # fmt: skip


def _plot(out):
    """loss.png of a run that has said two things or more, where matplotlib is there."""
    from ..evaluation import plots

    log = out / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if len(lines) > 1 and plots.available():
        plots.losses(out / "loss.png", lines)


def _data(options):
    """(`Labelled`, number of classes or None)."""
    from ..data import load

    data = load(options["data"], options["image_size"], options["data_dir"], options["on_error"])
    if data.images.shape[2] != data.images.shape[3]:
        raise ValueError(f"data must hold square images, got {list(data.images.shape[2:])}")
    if not options["class_conditional"]:
        return data, None
    if data.labels is None:
        raise ValueError(f"data must have labels for class_conditional, got {options['data']!r} without")
    return data, len(data.classes) if data.classes else int(data.labels.max()) + 1
