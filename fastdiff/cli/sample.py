"""Draw samples from a trained run.

Under torchrun the work is shared out among the processes, and the files are those of one process:

    torchrun --nproc-per-node 4 -m fastdiff sample runs/digits -n 50000 --batch-size 250 --out samples.npz

A run that was cut off goes on with --resume. The bytes depend on --batch-size and --threads as far as the network's own
arithmetic does.
"""

import argparse
import ast
import functools
from pathlib import Path


def add_arguments(parser):
    parser.add_argument("run", help="directory of fastdiff train")
    parser.add_argument("-n", type=int, default=64, help="number of samples (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed always has the same noise")
    parser.add_argument("--out", default="grid.png", help="a grid .png, .npz of uint8 [n, H, W, C], or folder")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut off")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("the sampler")
    group.add_argument("--solver", help="name of the solver (default ddpm; of an SDE euler_maruyama, of ncsn "
                       "annealed_langevin)")  # fmt: skip
    group.add_argument("--steps", type=_steps, help="number of timesteps, or 10,15,20 or ddim50 (default: all)")
    group.add_argument("--spacing", choices=("even", "leading", "linspace", "trailing"), default="even",
                       help="how a number of steps is spaced (default even)")  # fmt: skip
    group.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE",
                       help="an option of the solver, such as eta=0.5; may be given again")  # fmt: skip
    group.add_argument("--clip", type=_clip, default=1.0, help="bound of the estimates of x0, or none (default 1)")
    group.add_argument("--class", dest="label", type=_label, metavar="K", help="a class, or random")
    group.add_argument("--guidance", type=float, metavar="W", help="classifier-free guidance weight, 1 being none")
    group.add_argument("--null-class", type=int, metavar="K", help="the class of unconditional samples, for --guidance")
    group = parser.add_argument_group("how it runs")
    group.add_argument("--batch-size", type=int, default=500, help="samples at a time (default 500)")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the network")
    group.add_argument("--compile", action="store_true", help="run each step through torch.compile")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    group.add_argument("--threads", type=int, help="CPU threads (default: the run's)")


def main(args):
    from ..samplers.sharding import ranks
    from . import outputs, runs

    if args.n < 1:
        raise ValueError(f"n must be at least 1, got {args.n}")
    out = Path(args.out)
    outputs.check(out, args.resume)
    threads = runs.read_config(args.run).get("threads") if args.threads is None else args.threads
    with runs.threads(threads), ranks() as group:
        _sample(args, out, group)
    return 0


def _sample(args, out, group):
    from ..samplers.sharding import Parts
    from . import outputs

    sampler, labels = _sampler(args, group)
    parts = Parts(out.with_name(f"{out.name}.parts"), args.n, min(args.batch_size, args.n), _settings(args))
    if args.resume and not parts.folder.exists() and outputs.complete(out, args.n):
        return _say(group, f"{args.n} samples: {args.out}, whole already")
    none = None if labels is None else labels[:0]
    sampler.sample(sample_ids=[], seed=args.seed, condition=none)  # refuses what it would, before anything is written
    if group.rank == 0:
        parts.begin(args.resume)
    group.barrier()
    _fill(parts, sampler, labels, args, group)
    group.barrier()
    if not out.suffix:
        outputs.write_folder(parts, out, group.rank, group.world)
    elif group.rank == 0:
        outputs.write(parts, out, None if labels is None else labels.numpy())
    group.barrier()
    if group.rank == 0:
        parts.remove()
    return _say(group, f"{args.n} samples: {args.out}")


def _sampler(args, group):
    """(the sampler, labels [n] or None)."""
    import torch

    from ..samplers import ClassifierFree, Sampler
    from . import processes, runs

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and group.world > 1:
        device = f"cuda:{group.local}"
    model, process = runs.load_run(args.run, runs.device(device))
    labels = _labels(args, getattr(model, "num_classes", getattr(model.config, "num_classes", None)))
    if args.null_class is not None and args.guidance is None:
        raise ValueError(f"null-class must not be given without guidance, got {args.null_class}")
    known = getattr(model.config, "num_classes", None)  # with that of unconditional samples, where there is one
    if args.null_class is not None and known is not None and not 0 <= args.null_class < known:
        raise ValueError(f"null-class must be in [0, {known}), got {args.null_class}")
    guidance = None if args.guidance is None else ClassifierFree(args.guidance, args.null_class)
    try:
        steps = _timesteps(args, process.num_timesteps)
        sampler = Sampler(
            model, process, args.solver or processes.solver(process), steps, guidance=guidance, clip=args.clip,
            precision=args.precision, compile=args.compile, **dict(args.option),
        )  # fmt: skip
    except TypeError as error:  # an option that the solver has not, or of another kind
        raise ValueError(str(error)) from error
    return sampler, labels


def _timesteps(args, num_timesteps):
    """What the solver is told: the number or text as it is, or the timesteps of another spacing."""
    from ..processes import spacing

    if args.spacing == "even":
        return args.steps
    if not isinstance(args.steps, int):
        raise ValueError(f"steps must be a number with spacing {args.spacing}, got {args.steps!r}")
    return getattr(spacing, args.spacing)(num_timesteps, args.steps)


def _labels(args, num_classes):
    import torch

    from ..ops import reference, rng

    if args.label is None:
        if num_classes is not None:
            raise ValueError(f"class must be in [0, {num_classes}), or random, for this model, got none")
        return None
    if num_classes is None:
        raise ValueError(f"class must not be given for a model without classes, got {args.label}")
    if args.label == "random":
        words = reference.words(1, rng.make_rng(args.seed), torch.arange(args.n), rng.LABELS)[0, :, 0]
        return (words * num_classes) >> 32
    if not 0 <= args.label < num_classes:
        raise ValueError(f"class must be in [0, {num_classes}), or random, got {args.label}")
    return torch.full((args.n,), args.label)


def _fill(parts, sampler, labels, args, group):
    """Makes this process' micro-batches."""
    from tqdm import tqdm

    from ..data.images import to_uint8

    mine = parts.of(group.rank, group.world)
    rows = len(sampler.plan) if hasattr(sampler.plan, "rows") else 1
    with tqdm(total=len(mine) * rows, unit="step", disable=args.quiet or group.rank > 0) as bar:
        for index in mine:
            ids = parts.ids(index)
            condition = None if labels is None else labels[ids.start : ids.stop]
            draw = functools.partial(sampler.sample, seed=args.seed, sample_ids=ids, batch_size=parts.batch_size)
            images = to_uint8(draw(condition=condition, progress=bar)).permute(0, 2, 3, 1).contiguous()
            parts.save(index, images.cpu().numpy())


def _settings(args):
    """What decides the samples' bytes: a run may have trained on since it was cut off."""
    from ..training.checkpoint import MODEL, checksum

    free = ("run", "out", "resume", "quiet", "device", "threads", "main", "compile")
    settings = {name: value for name, value in vars(args).items() if name not in free}
    return {**settings, "run": str(Path(args.run).resolve()), MODEL: checksum(Path(args.run) / MODEL)}


def _say(group, text):
    if group.rank == 0:
        print(text)


def _steps(text):
    return int(text) if text.lstrip("-").isdecimal() else text


def _clip(text):
    return None if text == "none" else float(text)


def _label(text):
    return text if text == "random" else int(text)


def _option(text):
    """NAME=VALUE, the value a Python literal (number, True, None, list) or else a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
