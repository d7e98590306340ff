"""Draw samples from a trained run."""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("run", help="directory of fastdiff train")
    parser.add_argument("-n", type=int, default=64, help="number of samples (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed always has the same noise")
    parser.add_argument("--out", default="grid.png", help="a grid .png, .npz of uint8 [n, H, W, C], or folder")
    parser.add_argument("--steps", type=int, help="timesteps used, evenly spaced (default: all)")
    parser.add_argument("--batch-size", type=int, default=500, help="samples at a time (default 500)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the network")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the run's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(args):
    from ..samplers import Sampler
    from . import runs

    if args.n < 1:
        raise ValueError(f"n must be at least 1, got {args.n}")
    out = Path(args.out)
    check_out(out)
    model, process = runs.load_run(args.run, runs.device(args.device))
    sampler = Sampler(model, process, steps=args.steps, precision=args.precision)
    batch_size = min(args.batch_size, args.n)
    with runs.threads(runs.read_config(args.run).get("threads") if args.threads is None else args.threads):
        samples = sampler.sample(args.n, seed=args.seed, batch_size=batch_size, progress=not args.quiet)
    write(samples.cpu(), out)
    print(f"{args.n} samples: {args.out}")
    return 0


def check_out(out):
    """Raises, before hours of sampling, where the samples could not be written."""
    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"out must end in .png or .npz, or be a folder, got {str(out)!r}")
    if out.is_dir() if out.suffix else out.is_file():
        raise ValueError(f"out must be a {'file' if out.suffix else 'folder'}, got {str(out)!r}")
    out.parent.mkdir(parents=True, exist_ok=True)


def write(samples, out):
    """Samples [N, C, H, W] in [-1, 1] as a grid, an array or a folder of files, by the name of `out`."""
    from ..data.images import grid, save_npz, save_png

    if out.suffix == ".png":
        save_png(grid(samples), out)
    elif out.suffix == ".npz":
        save_npz(samples, out)
    else:
        out.mkdir(exist_ok=True)
        for i, sample in enumerate(samples):
            save_png(grid(sample[None], gap=0), out / f"{i:06d}.png", least=1)
