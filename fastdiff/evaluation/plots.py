"""Plots as PNG, by matplotlib."""

import importlib
import importlib.util


def _pyplot():
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise ImportError("plots need matplotlib: pip install 'fastdiff[plots]'") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def available():
    return importlib.util.find_spec("matplotlib") is not None


def bound(path, mean):
    """The means over images of a `fastdiff.evaluation.bpd.Bound`, [T] each, over t."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for ax, name, label in zip(axes, ("vb", "x0_mse", "eps_mse"), ("bits/dim", "MSE of x0", "MSE of eps"), strict=True):
        ax.plot(getattr(mean, name).tolist())
        ax.set(xlabel="t", ylabel=label, yscale="log")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def losses(path, lines):
    """The loss, and that of each quarter of the timesteps, of the lines of a metrics.jsonl, over the steps."""
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in ("loss", *(f"loss_q{i}" for i in range(1, 5))):
        said = [(line["step"], line[name]) for line in lines if name in line]
        if said:
            ax.plot(*zip(*said, strict=True), label=name, lw=1.5 if name == "loss" else 0.7)
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def qualities(path, bits, quality):
    """bits {name: values}, and quality {(name, solver, steps): values}: each mean with its seeds as points."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for place, values in enumerate(bits.values()):
        left.plot(values, [place] * len(values), "o", color="C0")
    left.set(xlabel="bits/dim, held out", yticks=range(len(bits)), yticklabels=list(bits))
    for name, solver in dict.fromkeys(key[:2] for key in quality):
        steps = sorted(key[2] for key in quality if key[:2] == (name, solver))
        means = [sum(quality[name, solver, S]) / len(quality[name, solver, S]) for S in steps]
        [line] = right.plot(steps, means, label=f"{name}; {solver}")
        for S in steps:
            values = quality[name, solver, S]
            right.plot([S] * len(values), values, ".", color=line.get_color())
    right.set(xlabel="steps", ylabel="Frechet distance", xscale="log", yscale="log")
    right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def lines(path, named, xlabel, ylabel, yscale="linear"):
    """A line each of {name: (xs, ys)}."""
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, (xs, ys) in named.items():
        ax.plot(xs, ys, label=name, marker="." if len(xs) < 20 else None)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def bars(path, groups, ylabel):
    """Bars of {group: {name: value}}, on a logarithmic scale."""
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    for i, name in enumerate(names):
        places = [place + 0.8 * (i + 0.5) / len(names) - 0.4 for place in range(len(groups))]
        ax.bar(places, [group[name] for group in groups.values()], 0.8 / len(names), label=name)
    ax.set(ylabel=ylabel, yscale="log", xticks=range(len(groups)), xticklabels=list(groups))
    ax.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
