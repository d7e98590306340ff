"""`fastdiff evaluate figures`: of trained runs what Nichol and Dhariwal 2021 show of theirs."""

import json
import math
from pathlib import Path

FIGURES = ("beta-ratio", "skipping", "gradient-noise")
SKIPPED = (0.0, 0.1, 0.2, 0.3, 0.4)  # shares of the reverse process


def main(args):
    from ..evaluation import plots
    from ..processes import GaussianProcess
    from . import runs

    if not plots.available():
        raise ImportError("plots need matplotlib: pip install 'fastdiff[plots]'")
    device = runs.device(args.device)
    loaded = {Path(run).name: (run, *runs.load_run(run, device)) for run in args.run}
    if len(loaded) < len(args.run):
        raise ValueError(f"run must be directories of different names, got {', '.join(args.run)}")
    for run, model, process in loaded.values():
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"run must be of process ddpm for figures, got {process!r} in {run!r}")
        if hasattr(model, "num_classes"):
            raise ValueError(f"run must be without classes for figures, got {run!r}")
    chosen = args.figure or FIGURES
    if "skipping" in chosen and args.n < 2:
        raise ValueError(f"n must be at least 2 for skipping, whose distances take covariances, got {args.n}")
    out = Path(args.out or "figures")
    out.mkdir(parents=True, exist_ok=True)
    made = {name: _MAKERS[name](loaded, args, out / f"{name}.png", device) for name in chosen}
    (out / "figures.json").write_text(json.dumps(made, indent=2) + "\n")
    print(f"figures: {out} ({', '.join(f'{name}.png' for name in made)}, figures.json)")
    return 0


def _beta_ratio(loaded, args, path, device):
    """beta~_t / beta_t over t / T: figure 1 of the paper."""
    from ..evaluation import plots

    found = {name: (p.posterior_variance / p.betas).tolist() for name, (_, _, p) in loaded.items()}
    lines = {name: ([t / len(ratio) for t in range(len(ratio))], ratio) for name, ratio in found.items()}
    plots.lines(path, lines, "t / T", "beta~ / beta", yscale="log")
    return found


def _skipping(loaded, args, path, device):
    """Frechet distance to the digits of samples that skip the first share of the reverse process: figure 4."""
    from ..data.images import to_uint8
    from ..evaluation import plots
    from ..evaluation.digit_features import DigitFeatures, split
    from ..evaluation.frechet import frechet_distance
    from ..samplers import Sampler

    for run, model, _ in loaded.values():
        if tuple(model.sample_shape) != (1, 8, 8):
            raise ValueError(f"run must be of digits, whose features are known, for skipping, got {run!r}")
    features, real = DigitFeatures.trained(), split()[0]
    found = {}
    for name, (_, model, process) in loaded.items():
        found[name] = []
        for skipped in SKIPPED:
            kept = list(range(max(1, round((1 - skipped) * process.num_timesteps))))
            samples = Sampler(model, process, steps=kept).sample(args.n, seed=args.seed, batch_size=min(args.n, 500))
            found[name].append(frechet_distance(features(to_uint8(samples).cpu()), features(real)))
    lines = {name: (SKIPPED, values) for name, values in found.items()}
    plots.lines(path, lines, "share of the reverse process skipped", "Frechet distance")
    return {"skipped": SKIPPED, **found}


def _gradient_noise(loaded, args, path, device):
    """The gradient-noise scale of L_vlb with timesteps drawn evenly, and by importance."""
    from ..data import load
    from ..evaluation import gradient_noise, plots
    from . import runs

    found = {}
    for name, (run, model, process) in loaded.items():
        told = runs.read_config(run)
        options = {name: told[name] for name in ("image_size", "data_dir", "on_error") if name in told}
        images = load(told["data"], **options).images.to(device)
        p = gradient_noise.importance(model.eval(), process, images, seed=args.seed)
        found[name] = {}
        for how, weights in (("uniform", None), ("importance", p)):
            each = gradient_noise.gradients(model, process, images, p=weights, batches=args.batches, seed=args.seed)
            found[name][how] = gradient_noise.noise_scale(each, 16)
    plots.bars(path, found, "gradient-noise scale of L_vlb")
    return {name: {how: value if math.isfinite(value) else None for how, value in each.items()}
            for name, each in found.items()}  # fmt: skip


_MAKERS = dict(zip(FIGURES, (_beta_ratio, _skipping, _gradient_noise), strict=True))
