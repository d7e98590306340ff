"""What sampling costs against steps, batch, resolution, threads and T, with a line of the slope that theory has.

    python -m benchmarks.scaling --out scaling

writes scaling.json and scaling.png (with matplotlib). Times are of a whole run of DDIM with a small U-Net, medians; the
memory is the most that tensors held at a time beside the network's weights.
"""

import argparse
import json
import os
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff import GaussianProcess, Sampler, UNet, UNetConfig, schedules

from .machine import seconds

STEPS, BATCH, SIZE, T = 10, 4, 32, 1000  # where they are not what varies

# What varies: its values, and the power of it that the time should grow with.
VARIED = {
    "steps": ([5, 10, 20, 40, 80], 1),
    "batch": ([1, 2, 4, 8, 16], 1),
    "resolution": ([8, 16, 32, 64, 128, 256], 2),
    "threads": ([1, 2, 4, 8, 16], -1),
    "T": ([100, 1000, 4000], 0),
}


def network(size):
    torch.manual_seed(0)
    # No attention but the middle's: its cost grows with the fourth power of the resolution.
    config = dict(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=())
    return UNet(UNetConfig(**config, image_size=size)).eval()


def run_of(steps=STEPS, batch=BATCH, resolution=SIZE, T=T):
    """A function that samples."""
    process = GaussianProcess(schedules.cosine(T))
    sampler = Sampler(network(resolution), process, "ddim", steps, precision="fp32")
    return lambda: sampler.sample(batch)


class Held(TorchDispatchMode):
    """The most bytes that tensors made in this context held at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.add((args, kwargs), lambda storage: 0)  # made before, as the network's weights, of which there are views
        result = function(*args, **(kwargs or {}))
        self.add(result, torch.UntypedStorage.nbytes)
        return result

    def add(self, values, size_of):
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.add_storage(storage, size_of(storage))

    def add_storage(self, storage, size):
        place = storage._cdata
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, place, size)

    def drop(self, place, size):
        self.known.discard(place)
        self.now -= size


def held_bytes(run):
    run()
    with Held() as held:
        run()
    return held.most


def measured(name, values, rounds=3, **fixed):
    """[{name: value, "seconds": ..., "held_bytes": ...}]; fixed: of run_of's options, what is not as usual."""
    rows, threads = [], torch.get_num_threads()
    for value in values:
        options = fixed | ({} if name == "threads" else {name: value})
        torch.set_num_threads(value if name == "threads" else threads)
        run = run_of(**options)
        rows.append({name: value, "seconds": seconds(run, rounds), "held_bytes": held_bytes(run)})
    torch.set_num_threads(threads)
    return rows


def plot(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, rows) in enumerate(found.items()):
        values, taken = [row[name] for row in rows], [row["seconds"] for row in rows]
        power, last = VARIED[name][1], len(rows) - 1
        time_ax, memory_ax = axes[:, column]
        time_ax.loglog(values, taken, "o-", label="measured")
        ideal = [taken[last] * (value / values[last]) ** power for value in values]
        time_ax.loglog(values, ideal, "--", label=f"~ {name}^{power}")
        time_ax.set(title=name, ylabel="seconds a run", ylim=(min(taken + ideal) / 2, 2 * max(taken + ideal)))
        time_ax.legend()
        held = [row["held_bytes"] / 2**20 for row in rows]
        memory_ax.semilogx(values, held, "o-")
        memory_ax.set(xlabel=name, ylabel="MiB held at most", ylim=(0, 1.1 * max(held)))
        for ax in (time_ax, memory_ax):
            ax.set_xticks(values, [str(value) for value in values], minor=False)
            ax.minorticks_off()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("scaling"), help="the files' name, without suffix")
    parser.add_argument("--only", choices=VARIED, action="append", help="vary this alone; repeat for several")
    arguments = parser.parse_args()
    processors, found = len(os.sched_getaffinity(0)), {}
    for name in arguments.only or VARIED:
        values = [value for value in VARIED[name][0] if name != "threads" or value <= processors]
        found[name] = measured(name, values)
        for row in found[name]:
            print(f"{name} {row[name]:5}  {row['seconds']:8.3f} s  {row['held_bytes'] / 2**20:8.1f} MiB", flush=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
