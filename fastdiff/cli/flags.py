"""The options of `fastdiff train`; those of the run are the fields of its TrainConfig."""

import argparse
from dataclasses import fields

# What a field of TrainConfig is; each of them is an option of the command line.
RUN = {
    "steps": "steps of the optimizer",
    "batch_size": "images a step, of all ranks together",
    "accumulate": "parts that a batch is worked on in, one after the other",
    "lr": "AdamW's learning rate",
    "betas": "AdamW's two betas",
    "weight_decay": "AdamW's weight decay",
    "warmup": "steps over which lr rises",
    "decay_to": "its last value as a fraction of the first, reached along a cosine",
    "grad_clip": "largest norm of the gradient",
    "ema_decay": "decay of the averaged weights",
    "ema_sigma_rel": "relative widths of further averages, for post-hoc EMA",
    "snapshot_every": "steps between two snapshots of those; 0: none",
    "objective": "the loss; by default hybrid with learned variances, else simple",
    "weighting": "of the simple loss over timesteps",
    "gamma": "of weighting min-snr",
    "timesteps": "how they are drawn",
    "label_dropout": "share of labels that are hidden (0.1 with --class-conditional)",
    "flip": "mirror half of the images",
    "seed": "of weights, batches, timesteps and noise",
    "precision": "auto: bf16 where a GPU has it",
    "log_every": "steps between two lines of metrics",
    "checkpoint_every": "steps between two checkpoints",
    "keep": "checkpoints kept",
    "sample_every": "steps between two sample grids; 0: none",
    "tensorboard": "metrics to TensorBoard too",
    "workers": "processes that read images which do not fit on the device",
    "compile": "the network through torch.compile",
    "cuda_graph": "record a step on a GPU once and replay it",
    "shard": "on several ranks: each holds all (ddp), or its part (fsdp)",
}


def add_arguments(parser):
    parser.add_argument("--config", metavar="FILE", help="options as .toml, .json or .yaml; the command line wins")
    _add_data(parser)
    _add_run(parser.add_argument_group("the run (defaults depend on the data)"))
    _add_process(parser.add_argument_group("the process"))
    _add_network(parser.add_argument_group("the network (defaults depend on the data)"))


def _add_data(parser):
    parser.add_argument(
        "--data", help="digits, fashion-mnist, torchvision:NAME, a folder, .npz, .npy, .tar or .parquet"
    )
    parser.add_argument("--out", help="directory of the run: checkpoints, metrics, samples")
    parser.add_argument("--data-dir", help="where fashion-mnist or torchvision's data lies (its root or the idx files)")
    parser.add_argument("--image-size", type=int, help="side that images of folders and shards are resized and cut to")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="at a broken image of a folder: stop, or skip it")
    parser.add_argument("--class-conditional", action=argparse.BooleanOptionalAction, help="tell the network the label")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 1 for digits, else torch's choice)")
    parser.add_argument("--num-samples", type=int, help="images in a sample grid (default 25)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_run(group):
    from ..training import TrainConfig
    from ..training.config import SHARDS
    from ..training.objectives import OBJECTIVES, WEIGHTINGS
    from ..training.timesteps import SAMPLERS

    choices = {"objective": OBJECTIVES, "weighting": WEIGHTINGS, "timesteps": SAMPLERS}
    choices |= {"precision": ("auto", "fp32", "bf16"), "shard": SHARDS}
    for field in fields(TrainConfig):
        name = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=RUN[field.name])
            continue
        kind = {tuple: floats, float | None: float}.get(field.type, field.type)
        metavar = "X,Y" if field.type is tuple else None
        group.add_argument(name, type=kind, choices=choices.get(field.name), metavar=metavar, help=RUN[field.name])


def _add_process(group):
    from ..processes import prediction, variance
    from .processes import OPTIONS, SCHEDULES

    group.add_argument("--process", choices=OPTIONS, help="ddpm, ncsn, or an SDE: vp, subvp, ve (default ddpm)")
    group.add_argument("--num-timesteps", type=int, help="T of ddpm, or the noise levels of ncsn")
    group.add_argument("--schedule", choices=SCHEDULES, help="noise schedule of ddpm")
    group.add_argument("--prediction", choices=prediction.KINDS, help="what the network predicts")
    group.add_argument("--variance", choices=variance.KINDS, help="of a reverse step of ddpm; learned: 2C channels")
    group.add_argument("--beta-min", type=float, help="beta(0) of vp and subvp (default 0.1)")
    group.add_argument("--beta-max", type=float, help="beta(1) of vp and subvp (default 20)")
    group.add_argument("--sigma-min", type=float, help="the least noise of ve and ncsn (default 0.01)")
    group.add_argument("--sigma-max", type=float, help="the most noise: ve 50, ncsn 1 by default")


def _add_network(network):
    network.add_argument("--channels", type=int, help="channels at full resolution")
    network.add_argument("--channel-mult", type=ints, metavar="1,2,2", help="channels of each level, as multiples")
    network.add_argument("--num-res-blocks", type=int, help="residual blocks a level")
    network.add_argument("--attention-resolutions", type=ints, metavar="16,8", help="sizes with attention")
    network.add_argument("--heads", type=int, help="attention heads")
    network.add_argument("--dropout", type=float, help="dropout of the residual blocks")
    network.add_argument("--groups", type=int, help="groups of every GroupNorm")
    network.add_argument("--scale-shift", action=argparse.BooleanOptionalAction, help="the time scales and shifts")


def _numbers(kind):
    def parse(text):
        try:
            return tuple(kind(part) for part in text.split(",") if part)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {kind.__name__}s between commas, got {text!r}") from None

    return parse


ints, floats = _numbers(int), _numbers(float)
