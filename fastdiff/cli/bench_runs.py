"""`fastdiff bench` without --static: the benchmark files run, kept as JSON, shown as a table and a chart, compared."""

import subprocess
import sys
from statistics import geometric_mean


def run(root, output, select):
    """Runs benchmarks/ of the checkout, those that pytest's -k selects; the JSON of pytest-benchmark in output."""
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--benchmark-only", f"--benchmark-json={output}"]
    status = subprocess.run([*command, *(["-k", select] if select else [])], cwd=root).returncode
    if status:
        raise ValueError(f"the benchmarks must pass, got pytest's status {status}")


def relative(cases):
    """{(case, threads, provider): its median over fastdiff's}, which machine load moves least."""
    return {
        (*case, provider): times[provider] / times["fastdiff"]
        for case, times in cases.items()
        if "fastdiff" in times
        for provider in times
        if provider != "fastdiff"
    }


def regressions(old, new, threshold):
    """A line for every ratio in both runs that has fallen by more than the threshold, a share of the old one."""
    before, now = relative(old), relative(new)
    return [
        f"{case}, {threads} threads: {before[key]:.2f} times as fast as {provider} became {now[key]:.2f}"
        for key in sorted(before.keys() & now.keys())
        for case, threads, provider in [key]
        if now[key] < before[key] * (1 - threshold)
    ]


def chart(cases, machine, path):
    """A PNG of bars: for each op or network and provider, the geometric mean of how many times as fast fastdiff is."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no chart: matplotlib is not installed (pip install fastdiff[plots])", file=sys.stderr)
        return
    means = {}
    for (case, threads, provider), ratio in relative(cases).items():
        if not provider.startswith("fastdiff"):  # itself, otherwise
            row = f"{case.split(' [')[0].rstrip(',')} / {provider}"
            means.setdefault(row, {}).setdefault(threads, []).append(ratio)
    if not means:
        return print("no chart: the run compares fastdiff with nothing", file=sys.stderr)
    labels, counts = sorted(means), sorted({threads for found in means.values() for threads in found})
    figure = Figure(figsize=(9, 1.5 + 0.25 * len(labels)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for i, threads in enumerate(counts):
        found = {row: means[label][threads] for row, label in enumerate(labels) if threads in means[label]}
        places = [row + (i - (len(counts) - 1) / 2) * height for row in found]
        name = f"{threads} thread{'s' if threads > 1 else ''}"
        axes.barh(places, [geometric_mean(ratios) for ratios in found.values()], height, label=name)
    axes.set_yticks(range(len(labels)), labels)
    axes.legend(loc="lower right")
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times as fast as the provider", ylim=(len(labels) - 0.4, -0.6))
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.4)
    axes.set_title(machine, fontsize=9)
    figure.savefig(path, dpi=120)


def earlier(ratios, path):
    """The times of an earlier run."""
    try:
        return ratios.read(path)[0]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"compare must be the --output of an earlier run, got {str(path)!r}: {error!r}") from None


def main(arguments, root, ratios, floor):
    """The exit status: 1 where --compare finds a regression."""
    output = arguments.output.resolve()
    old = earlier(ratios, arguments.compare) if arguments.compare else None  # read first: it may be overwritten
    output.parent.mkdir(parents=True, exist_ok=True)  # pytest-benchmark does not, and it writes when all is done
    run(root, output, arguments.select)
    cases, machine = ratios.read(output)
    tables = ratios.tables(output)
    print(tables)
    output.with_suffix(".md").write_text(f"{tables}\n\n{floor.table()}\n")
    chart(cases, machine, output.with_suffix(".png"))
    if old is None:
        return 0
    worse = regressions(old, cases, arguments.threshold)
    print("\n".join(worse) or f"no ratio fell by more than {arguments.threshold:.0%}")
    return int(bool(worse))
