"""Draw samples from a trained run."""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("run", help="directory of fastdiff train")
    parser.add_argument("-n", type=int, default=64, help="number of samples (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed is always the same (default 0)")
    parser.add_argument("--out", default="grid.png", help="a grid .png, an .npz of uint8 [n, H, W, C], or a folder of .png")
    parser.add_argument("--steps", type=int, help="timesteps used, evenly spaced (default: all)")
    parser.add_argument("--batch-size", type=int, default=500, help="samples at a time (default 500)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the network")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(args):
    import torch

    from ..samplers import Sampler
    from .runs import load_run

    if args.n < 1:
        raise ValueError(f"n must be at least 1, got {args.n}")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, process = load_run(args.run, device)
    sampler = Sampler(model, process, steps=args.steps, precision=args.precision)
    samples = sampler.sample(args.n, seed=args.seed, batch_size=min(args.batch_size, args.n), progress=not args.quiet)
    write(samples.cpu(), Path(args.out))
    print(f"{args.n} samples: {args.out}")
    return 0


def write(samples, out):
    """Samples [N, C, H, W] in [-1, 1] as a grid, an array or a folder of files, by the name of `out`."""
    import numpy as np

    from ..data.images import grid, save_png, to_uint8

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        save_png(grid(samples), out)
    elif out.suffix == ".npz":
        with open(out, "wb") as file:
            np.savez(file, to_uint8(samples).permute(0, 2, 3, 1).numpy())
    elif out.suffix:
        raise ValueError(f"out must end in .png or .npz, or be a folder, got {str(out)!r}")
    else:
        out.mkdir(exist_ok=True)
        for i, sample in enumerate(samples):
            save_png(grid(sample[None], gap=0), out / f"{i:06d}.png", least=1)
