"""Ratios of medians from the JSON of one run, as a Markdown table: how many times as fast as each provider fastdiff is.

    pytest benchmarks/ --benchmark-only --benchmark-json=times.json
    python -m benchmarks.ratios times.json

The second table sums up every op whose cases name their kind last: geometric means over its large shapes against the
better of eager and compiled in each. The third holds fastdiff's times against what the machine can do: of the bytes
that a case must move, the share of a copy's rate; of the FLOPs that it is usually done in, the share of a matrix
product's (an algorithm of fewer multiplications can pass 100%).
"""

import json
import math
import re
import sys
from collections import defaultdict
from statistics import geometric_mean

SMALL = 1 << 14  # elements; below, a case is about overhead


def read(path):
    """{(case, threads): {provider: median in seconds}}, and the machine's description."""
    with open(path) as file:
        report = json.load(file)
    cases = defaultdict(dict)
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        cases[info["case"], info["threads"]][info["provider"]] = entry["stats"]["median"]
    machine = report["machine_info"]
    processor = machine.get("gpu") or machine["cpu"].get("brand_raw", machine["machine"])
    return cases, f"{processor}, torch {machine['torch']}, Python {machine['python_version']}"


def shares(path):
    """{(case, threads): (kind, rate, share of the peak)} of fastdiff's medians, where a case tells bytes or FLOPs."""
    with open(path) as file:
        report = json.load(file)
    peaks = report["machine_info"].get("peaks", {})
    found = {}
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        peak = peaks.get(str(info["threads"]))
        if info["provider"] != "fastdiff" or not peak or elements(info["case"]) < SMALL:
            continue
        for kind, name in (("moved", "copy_gbps"), ("flops", "product_gflops")):
            if info.get(kind):
                rate = info[kind] / entry["stats"]["median"] / 1e9
                found[info["case"], info["threads"]] = name, rate, rate / peak[name]
    return found


def shares_table(found):
    if not found:
        return ""
    lines = ["| case | threads | rate | share of the measured peak |", "|---|---:|---:|---:|"]
    for (case, threads), (name, rate, share) in sorted(found.items()):
        unit, peak = ("GB/s", "copy") if name == "copy_gbps" else ("GFLOP/s", "product")
        lines.append(f"| {case} | {threads} | {rate:.1f} {unit} | {share:.0%} of a {peak} |")
    return "\n".join(lines)


def ratio(times, provider):
    return times[provider] / times["fastdiff"]


def table(cases, machine):
    providers = sorted({provider for times in cases.values() for provider in times} - {"fastdiff"})
    lines = [f"Measured on {machine}; medians, ratios within one run.", ""]
    lines.append("| case | threads | fastdiff_us | " + " | ".join(f"x {provider}" for provider in providers) + " |")
    lines.append("|---|" + "---:|" * (len(providers) + 2))
    for (case, threads), times in sorted(cases.items()):
        if "fastdiff" not in times:
            continue
        ratios = [f"{ratio(times, p):.2f}" if p in times else "" for p in providers]
        lines.append(f"| {case} | {threads} | {times['fastdiff'] * 1e6:.1f} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def elements(case):
    return math.prod(int(n) for n in re.search(r"\[(.*)\]", case)[1].split(","))


def summary(cases):
    """Geometric means per (op, kind, threads) against the better of eager and compiled; the worst against eager."""
    groups = defaultdict(list)
    for (case, threads), times in cases.items():
        if {"eager", "compiled", "fastdiff"} <= times.keys() and elements(case) >= SMALL:
            op, kind = re.split(r" \[.*\] ", case)
            eager = ratio(times, "eager")
            groups[op, kind, threads].append((min(eager, ratio(times, "compiled")), eager))
    if not groups:
        return ""
    lines = ["| op | threads | x the better of eager and compiled | x eager, worst shape |", "|---|---:|---:|---:|"]
    for (op, kind, threads), ratios in sorted(groups.items()):
        better, eager = zip(*ratios, strict=True)
        lines.append(f"| {op}, {kind} | {threads} | {geometric_mean(better):.2f} | {min(eager):.2f} |")
    return "\n".join(lines)


def tables(path):
    """All of them, in Markdown."""
    cases, machine = read(path)
    return "\n\n".join(filter(None, (table(cases, machine), summary(cases), shares_table(shares(path)))))


if __name__ == "__main__":
    print(tables(sys.argv[1]))
