"""What three seeds say: means, standard errors, which of the paper's claims hold, a table and a plot."""

import json
import math
import statistics

from fastdiff.evaluation import plots
from fastdiff.files import whole

# (what is claimed to be less, than what): bits/dim.
BITS = (
    ("cosine, simple", "linear, simple"),
    ("cosine, hybrid", "cosine, simple"),
    ("cosine, vlb, importance sampling", "cosine, hybrid"),
    ("cosine, hybrid", "cosine, hybrid, importance sampling"),
)
SIMPLE, HYBRID = "cosine, simple", "cosine, hybrid"
# The same of Frechet distances, each by way, solver and steps; the paper's figure 8.
QUALITY = (
    ((HYBRID, "ddpm", 25), (SIMPLE, "ddpm", 25)),
    ((HYBRID, "ddpm", 50), (SIMPLE, "ddpm", 50)),
    ((SIMPLE, "ddim", 10), (HYBRID, "ddpm", 10)),
    ((SIMPLE, "ddim", 25), (HYBRID, "ddpm", 25)),
    ((HYBRID, "ddpm", 100), (SIMPLE, "ddim", 100)),
)


def mean_and_error(values):
    """(mean, its standard error)."""
    spread = statistics.stdev(values) if len(values) > 1 else math.inf
    return statistics.fmean(values), spread / math.sqrt(len(values))


def verdict(less, more):
    """Of the claim that `less` is below `more`, two lists of one number a seed."""
    (a, error_a), (b, error_b) = mean_and_error(less), mean_and_error(more)
    difference, error = b - a, math.hypot(error_a, error_b)
    said = "reproduced" if difference > 2 * error else "not reproduced"
    return {"difference": difference, "standard_error": error, "verdict": said}


def write(out, results, settings, features):
    """OUT/iddpm.json, .md and, where matplotlib is there, .png."""
    bits = {}
    quality = {}
    for result in results:
        bits.setdefault(result["way"], []).append(result["bpd"])
        for key, value in result["frechet"].items():
            solver, steps = key.split()
            quality.setdefault((result["way"], solver, int(steps)), []).append(value)
    claims = [{"less": a, "more": b, "of": "bits/dim", **verdict(bits[a], bits[b])} for a, b in BITS]
    for a, b in QUALITY:
        if a in quality and b in quality:
            names = (f"{way}, {solver} {steps}" for way, solver, steps in (a, b))
            less, more = names
            claims.append({"less": less, "more": more, "of": "Frechet distance", **verdict(quality[a], quality[b])})
    table = markdown(bits, quality, claims)
    with whole(out / "iddpm.json") as part:
        numbers = {"settings": settings, "feature_accuracy": features.accuracy(), "claims": claims, "runs": results}
        part.write_text(json.dumps(numbers, indent=2) + "\n")
    with whole(out / "iddpm.md") as part:
        part.write_text(table)
    if plots.available():
        plots.qualities(out / "iddpm.png", bits, quality)
    print(table)


def markdown(bits, quality, claims):
    lines = ["| trained with | bits/dim, held out |", "|---|---:|"]
    lines += [f"| {way} | {_said(values, 3)} |" for way, values in bits.items()]
    steps = sorted({key[2] for key in quality})
    lines += ["", f"| Frechet distance at steps | {' | '.join(map(str, steps))} |", f"|---|{'---:|' * len(steps)}"]
    for way, solver in dict.fromkeys(key[:2] for key in quality):
        lines.append(f"| {way}; {solver} | {' | '.join(_said(quality[way, solver, S], 2) for S in steps)} |")
    lines += ["", "| claim | difference | |", "|---|---:|---|"]
    for claim in claims:
        difference = f"{claim['difference']:.3f} ± {claim['standard_error']:.3f}"
        lines.append(f"| {claim['of']}: {claim['less']} < {claim['more']} | {difference} | {claim['verdict']} |")
    return "\n".join(lines) + "\n"


def _said(values, digits):
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"
