"""Ratios of medians from the JSON of one run, as a Markdown table: how many times as fast as each provider fastdiff is.

    pytest benchmarks/ --benchmark-only --benchmark-json=times.json
    python -m benchmarks.ratios times.json
"""

import json
import sys
from collections import defaultdict


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


def table(cases, machine):
    providers = sorted({provider for times in cases.values() for provider in times} - {"fastdiff"})
    lines = [f"Measured on {machine}; medians, ratios within one run.", ""]
    lines.append("| case | threads | fastdiff_us | " + " | ".join(f"x {provider}" for provider in providers) + " |")
    lines.append("|---|" + "---:|" * (len(providers) + 2))
    for (case, threads), times in sorted(cases.items()):
        if "fastdiff" not in times:
            continue
        ratios = [f"{times[p] / times['fastdiff']:.2f}" if p in times else "" for p in providers]
        lines.append(f"| {case} | {threads} | {times['fastdiff'] * 1e6:.1f} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(*read(sys.argv[1])))
