"""Train a DDPM on images: checkpoints, metrics and sample grids go to one directory."""

import argparse
from dataclasses import fields
from pathlib import Path

# What suits each data set; the command line can change all of it. The digits take two minutes or so on two CPU cores.
PRESETS = {
    "digits": dict(
        steps=3000, batch_size=64, lr=2e-3, decay_to=0.05, ema_decay=0.995, checkpoint_every=500, sample_every=1000,
        schedule="cosine",
        threads=1,  # two are no quicker on such small tensors, and four times slower where they wait for one another
        model=dict(channels=16, channel_mult=(1, 2), attention_resolutions=(4,), groups=8, dropout=0.0),
    ),
    "fashion-mnist": dict(
        steps=10_000, batch_size=64, lr=1e-3, decay_to=0.05,
        model=dict(channels=32, channel_mult=(1, 2, 2), attention_resolutions=(14,), groups=8, dropout=0.1),
    ),
}  # fmt: skip
PROCESS = dict(schedule="linear", num_timesteps=1000, prediction="eps", variance="fixed_small")
DEFAULT = dict(model=dict(channels=64, channel_mult=(1, 2, 2), attention_resolutions=(), dropout=0.1))


def add_arguments(parser):
    parser.add_argument(
        "--data", required=True, help="digits, fashion-mnist, torchvision:NAME, a folder, .npz, .npy, .tar or .parquet"
    )
    parser.add_argument("--out", required=True, help="directory of the run: checkpoints, metrics, samples")
    parser.add_argument("--data-dir", help="where fashion-mnist or torchvision's data lies (its root or the idx files)")
    parser.add_argument("--image-size", type=int, help="side that images of folders and shards are resized and cut to")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="at a broken image of a folder: stop, or skip it"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 1 for digits, else torch's choice)")
    parser.add_argument("--num-samples", type=int, default=25, help="images in a sample grid (default 25)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("the run (defaults depend on the data)")
    for name, kind, text in (
        ("steps", int, "steps of the optimizer"),
        ("batch-size", int, "images a step"),
        ("lr", float, "Adam's learning rate"),
        ("warmup", int, "steps over which it rises"),
        ("decay-to", float, "its last value as a fraction of the first, reached along a cosine"),
        ("grad-clip", float, "largest norm of the gradient"),
        ("ema-decay", float, "decay of the averaged weights"),
        ("seed", int, "of weights, batches, timesteps and noise"),
        ("log-every", int, "steps between two lines of metrics"),
        ("checkpoint-every", int, "steps between two checkpoints"),
        ("keep", int, "checkpoints kept"),
        ("sample-every", int, "steps between two sample grids; 0: none"),
        ("num-timesteps", int, "T of the process"),
    ):
        group.add_argument(f"--{name}", type=kind, help=text)
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="auto: bf16 where a GPU has it")
    group.add_argument("--schedule", choices=("linear", "cosine"), help="noise schedule")
    group.add_argument("--prediction", choices=("eps", "x0", "v"), help="what the network predicts")
    group.add_argument("--variance", choices=("fixed_small", "fixed_large"), help="of a reverse step")
    group.add_argument("--flip", action="store_true", default=None, help="mirror half of the images")
    group.add_argument(
        "--no-tensorboard", dest="tensorboard", action="store_false", default=None, help="metrics.jsonl alone"
    )
    network = parser.add_argument_group("the network (defaults depend on the data)")
    network.add_argument("--channels", type=int, help="channels at full resolution")
    network.add_argument("--channel-mult", type=_ints, metavar="1,2,2", help="channels of each level, as multiples")
    network.add_argument("--num-res-blocks", type=int, help="residual blocks a level")
    network.add_argument("--attention-resolutions", type=_ints, metavar="16,8", help="sizes with attention")
    network.add_argument("--heads", type=int, help="attention heads")
    network.add_argument("--dropout", type=float, help="dropout of the residual blocks")
    network.add_argument("--groups", type=int, help="groups of every GroupNorm")


def _ints(text):
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be ints between commas, got {text!r}") from None


def make_settings(args, images):
    """(TrainConfig, options of the process, UNetConfig): the preset of the data with what the command line changes."""
    from ..models import UNetConfig
    from ..training import TrainConfig

    preset = {**DEFAULT, **PRESETS.get(args.data, {})}
    given = {name: value for name, value in vars(args).items() if value is not None}
    choices = {**preset, **preset["model"], **given}

    def chosen(*names):
        return {name: choices[name] for name in names if name in choices}

    config = TrainConfig(**chosen(*(field.name for field in fields(TrainConfig))))
    process = {**PROCESS, **chosen(*PROCESS)}
    size = dict(in_channels=images.shape[1], image_size=images.shape[2])
    return config, process, UNetConfig(**{**chosen(*(field.name for field in fields(UNetConfig))), **size})


def main(args):
    import torch

    from ..data import load
    from ..models import UNet
    from ..training import Interrupted, train
    from . import runs

    device = runs.device(args.device)
    images = load(args.data, args.image_size, args.data_dir, args.on_error).images
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"data must hold square images, got {list(images.shape[2:])}")
    config, process_options, model_config = make_settings(args, images)
    process = runs.make_process(process_options)
    torch.manual_seed(config.seed)
    model = UNet(model_config).to(device)
    threads = PRESETS.get(args.data, {}).get("threads") if args.threads is None else args.threads
    settings = {"data": args.data, "threads": threads, "process": process_options, "model": model_config.to_dict()}
    grids = runs.Grids(process, Path(args.out), args.num_samples, config.seed)
    try:
        with runs.threads(threads):
            train(
                model, process, images, args.out, config,
                settings=settings, draw=grids, resume=args.resume, progress=not args.quiet,
            )  # fmt: skip
    except Interrupted:
        print(f"\nsaved in {args.out}; go on with the same command and --resume")
        return 130
    print(f"trained: {args.out} (draw with `fastdiff sample {args.out} -n 64 --out grid.png`)")
    return 0
