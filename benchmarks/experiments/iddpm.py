"""The experiments of Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021, on digits.

    python -m benchmarks.experiments.iddpm --out runs/iddpm

Five ways to train, three seeds each, at equal steps. Of each run: the variational bound of held-out digits, summed over
every t; of two, the Frechet distance of samples of few and many steps. A run that is done is not done again. The last
lines are the table; OUT/iddpm.json has every number, OUT/iddpm.md the table, OUT/iddpm.png the plot. Half an hour on
one core. What it said is in benchmarks/experiments/results: a difference counts where it exceeds twice its standard
error.

The digits are scikit-learn's, 8x8, all but every sixth for training; the network is `network.MLP`, 0.9 million weights;
T = 200. Frechet distances are between 1000 samples and the training digits, in the 32 features before the last layer of
`fastdiff.evaluation.digit_features`. Fixed variances are whichever of the two gives fewer bits; samples are drawn with
the posterior's. The samples of a seed start from the same noise for every way of training.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.experiments import report
from benchmarks.experiments.network import seeded
from fastdiff import GaussianProcess, Sampler, schedules
from fastdiff.data.images import grid, save_png, to_uint8
from fastdiff.evaluation import bpd
from fastdiff.evaluation.digit_features import DigitFeatures, split
from fastdiff.evaluation.frechet import frechet_distance
from fastdiff.files import whole
from fastdiff.training import TrainConfig, train


@dataclass(frozen=True)
class Way:
    """How to train, and which solvers samples are drawn with."""

    schedule: str
    objective: str
    timesteps: str = "uniform"
    solvers: tuple = ()

    @property
    def learned(self):
        return self.objective != "simple"


WAYS = {
    "linear, simple": Way("linear", "simple"),
    "cosine, simple": Way("cosine", "simple", solvers=("ddpm", "ddim")),
    "cosine, hybrid": Way("cosine", "hybrid", solvers=("ddpm",)),
    "cosine, vlb, importance sampling": Way("cosine", "vlb", "loss-aware"),
    "cosine, hybrid, importance sampling": Way("cosine", "hybrid", "loss-aware"),
}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    data, features = split(), DigitFeatures.trained()
    results = [result(way, seed, out, args, data, features) for seed in range(args.seeds) for way in WAYS]
    report.write(out, results, {name: value for name, value in vars(args).items() if name != "out"}, features)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="directory of the runs and the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500, help="of training, batches of 64")
    parser.add_argument("--num-timesteps", type=int, default=200, help="T")
    parser.add_argument("--sampling", type=int, nargs="+", default=[10, 25, 50, 100, 200], help="numbers of steps")
    parser.add_argument("--samples", type=int, default=1000, help="of which a Frechet distance is taken")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def result(name, seed, out, args, data, features):
    """The numbers of one run, made where they are not there yet."""
    way = WAYS[name]
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    path = folder / "result.json"
    if path.exists():
        return json.loads(path.read_text())
    model, process = trained(way, seed, folder, args, data[0])
    found = {"way": name, "seed": seed, **asdict(way), **bits(model, process, data[2])}
    found["frechet"] = {}
    for solver in way.solvers:
        for steps in args.sampling:
            images = samples(model, process, solver, steps, args.samples, seed)
            found["frechet"][f"{solver} {steps}"] = frechet_distance(features(images), features(data[0]))
            save_png(grid(images[:64].float() / 127.5 - 1), folder / f"{solver}-{steps}.png")
    with whole(path) as part:
        part.write_text(json.dumps(found, indent=2) + "\n")
    print(name, seed, {key: found[key] for key in ("bpd", "frechet")}, flush=True)
    return found


def make_process(way, num_timesteps):
    betas = getattr(schedules, way.schedule)(num_timesteps)
    return GaussianProcess(betas, variance="learned_range" if way.learned else "fixed_small")


def trained(way, seed, folder, args, images):
    process = make_process(way, args.num_timesteps)
    model = seeded(seed, images.shape[1:], 2 if way.learned else 1, scale=1000 / args.num_timesteps)
    config = TrainConfig(
        steps=args.steps, batch_size=64, lr=1e-3, decay_to=0.05, ema_decay=0.995, objective=way.objective,
        timesteps=way.timesteps, seed=seed, tensorboard=False, keep=1, sample_every=0, log_every=100,
    )  # fmt: skip
    resume = (folder / "config.json").exists()
    return train(model, process, images, folder, config, resume=resume, progress=False), process


def bits(model, process, images):
    """The bound of held-out images. Where the variance is fixed, the better of the two: both are upper bounds."""
    variances = ["fixed_small", "fixed_large"] if process.variance.startswith("fixed") else [process.variance]
    totals = {}
    for variance in variances:
        like = GaussianProcess(process.betas, variance=variance)
        totals[variance] = bpd.full(model, like, images, clip=1.0).total.mean().item()
    best = min(totals, key=totals.get)
    return {"bpd": totals[best], "bpd_of": totals}


def samples(model, process, solver, steps, number, seed):
    """uint8 [number, 1, 8, 8]."""
    return to_uint8(Sampler(model, process, solver, steps, precision="fp32").sample(number, seed=1000 + seed))


if __name__ == "__main__":
    main()
