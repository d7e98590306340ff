"""Measure a trained run.

`fastdiff evaluate bpd RUN`: the variational bound of the run's images in bits per dimension with a confidence interval,
by the full sum over t or, with --timesteps, estimated from so many of them for each image.

`fastdiff evaluate figures RUN...`: a folder of PNGs and their numbers: beta~ / beta over t; the quality of samples that
skip the first 0 to 40% of the reverse process (of digits, whose Frechet distance is taken in a classifier's features);
the gradient-noise scale of the bound with timesteps drawn evenly and by importance.
"""

import json
import math
from pathlib import Path

from ..files import whole
from . import figures


def add_arguments(parser):
    parser.add_argument("measure", choices=("bpd", "figures"), help="what to measure")
    parser.add_argument("run", nargs="+", help="directory of fastdiff train; for figures one or more")
    parser.add_argument("-n", type=int, default=256, help="images of the data, samples of skipping (default 256)")
    parser.add_argument("--data", help="other data than the run's, as for fastdiff train")
    parser.add_argument("--timesteps", type=int, help="of each image, in strata; by default the full sum")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", help="file of the numbers as JSON; of figures their folder (default figures)")
    parser.add_argument("--plot", help="PNG of the terms over t, of the full sum")
    parser.add_argument("--figure", choices=figures.FIGURES, action="append", help="this one; may be given again (all)")
    parser.add_argument("--batches", type=int, default=32, help="gradients of 16 samples, for gradient-noise")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")


def main(args):
    _check(args)
    return figures.main(args) if args.measure == "figures" else _bpd(args)


def _check(args):
    for name, least in (("n", 1), ("batch_size", 1), ("batches", 2)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(args, name)}")
    foreign = ("figure",) if args.measure == "bpd" else ("data", "timesteps", "plot")
    for name in foreign:
        if getattr(args, name) is not None:
            raise ValueError(f"{name} must not be given for {args.measure}, got {getattr(args, name)!r}")
    if args.measure == "bpd":
        _check_bpd(args)


def _check_bpd(args):
    if len(args.run) > 1:
        raise ValueError(f"run must be one directory for bpd, got {len(args.run)}")
    args.run = args.run[0]
    for name in ("out", "plot"):
        path = getattr(args, name)
        if path and Path(path).is_dir():
            raise ValueError(f"{name} must be a file, got the folder {path!r}")
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)


def _bpd(args):
    from ..evaluation import bpd, plots
    from ..processes import GaussianProcess
    from . import runs

    if args.plot and args.timesteps is not None:
        raise ValueError(f"timesteps must not be given with plot, got {args.timesteps}")
    if args.plot and not plots.available():
        raise ImportError("plots need matplotlib: pip install 'fastdiff[plots]'")
    device = runs.device(args.device)
    model, process = runs.load_run(args.run, device)
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"run must be of process ddpm for bpd, got {process!r}")
    with runs.threads(runs.read_config(args.run).get("threads")):
        parts = [_measured(bpd, model.eval(), process, args, *batch) for batch in _batches(args, model, device)]
    said = _said(bpd, parts, args)
    print(f"{said['total_bpd']:.4f} +- {said['half_width']:.4f} bits/dim (95%) of {said['images']} images")
    if args.plot:
        plots.bound(args.plot, bpd.Bound(*(sum(each) / said["images"] for each in _sums(parts))))
    if args.out:
        said["half_width"] = said["half_width"] if math.isfinite(said["half_width"]) else None  # of one image
        with whole(args.out) as part:
            part.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
    return 0


def _batches(args, model, device):
    """(images, labels or None, ids) after one another."""
    import torch

    from ..data import load
    from . import runs

    told = runs.read_config(args.run)
    options = {} if args.data else {"data_dir": told.get("data_dir"), "on_error": told.get("on_error", "raise")}
    if not (args.data or told.get("data")):
        raise ValueError(f"data must be given for a run that tells none, got none in {args.run!r}")
    data = load(args.data or told["data"], told.get("image_size"), **options)
    if data.images.shape[1:] != torch.Size(model.sample_shape):
        raise ValueError(f"data must be of shape {list(model.sample_shape)}, got {list(data.images.shape[1:])}")
    conditional = hasattr(model, "num_classes")
    if conditional and data.labels is None:
        raise ValueError("data must have labels for a run with classes, got none")
    for start in range(0, min(args.n, len(data.images)), args.batch_size):
        here = slice(start, min(start + args.batch_size, args.n))
        images = data.images[here].to(device)
        labels = data.labels[here].to(device) if conditional else None
        yield images, labels, torch.arange(start, start + len(images), device=device)


def _measured(bpd, model, process, args, images, labels, ids):
    options = dict(labels=labels, seed=args.seed, sample_ids=ids)
    if args.timesteps is None:
        return bpd.full(model, process, images, **options)
    return bpd.stratified(model, process, images, args.timesteps, **options)


def _sums(parts):
    return ([part.sum(0).cpu() for part in each] for each in zip(*parts, strict=True))


def _said(bpd, parts, args):
    import torch

    total = torch.cat([part.total if args.timesteps is None else part for part in parts])
    said = {"images": len(total), "seed": args.seed, "timesteps": args.timesteps}
    said["total_bpd"], said["half_width"] = bpd.estimate(total)
    if args.timesteps is None:
        means = bpd.Bound(*(sum(each) / len(total) for each in _sums(parts)))
        said |= {"prior_bpd": means.prior.item()}
        said |= {name: getattr(means, name).tolist() for name in ("vb", "x0_mse", "eps_mse")}
    return said
