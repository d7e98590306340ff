"""Runs kernels' PTX on ptxsim: `python -m tests.ptx.run [--update] [NAME...]`.

A name is that of a row, "cuda q_sample of u8 drawn bf16 first", or how those of counted rows begin, "triton"; none: all
of these. Results go to the output as JSON, a line a row, which is how the tests run it: in a process of its own, where
Triton does not interpret. With --update the counts are kept in counts.json, and what executes too many is printed.
"""

import argparse
import json
import os
import sys
import traceback

os.environ.pop("TRITON_INTERPRET", None)

import torch

from fastdiff.ops import reference
from tests.ops.accuracy import assert_in_budget, error_of

from . import cuda_kernels, inductor_kernels, kept, plants, triton_kernels
from .cases_losses import CASES
from .simulator import Buffer

LANGUAGES = {"cuda": cuda_kernels, "triton": triton_kernels}


DRAWS = 8  # of the data where an output has few elements, for on these one draw's error is luck


def definition(case, dtype, seed=0):
    """The outputs of the plain PyTorch definition, in this dtype."""
    arguments = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case.arguments(seed).items()
    }
    getattr(reference, case.op)(*arguments.values())
    return case.outputs(arguments)


def check(case, outputs):
    """The error budget of tests/ops."""
    draws = DRAWS if any(value.numel() <= DRAWS for value in outputs.values()) else 1
    both = [[definition(case, dtype, seed) for dtype in (torch.float64, torch.float32)] for seed in range(draws)]
    for name, value in outputs.items():
        try:
            usual = max(error_of(eager[name], exact[name]) for exact, eager in both)
            assert_in_budget(value, both[0][0][name], usual)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error or 'not finite'}") from None


def inductor(case):
    """Instructions an element of inductor's kernels."""
    try:
        return {"count": inductor_kernels.instructions(case) / case.elements, "wrong": None}
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        return {"count": None, "wrong": f"{type(error).__name__}: {error}"}


def measured(language, case, plant=None):
    """Instructions an element, findings, kernels; and what is wrong, if anything."""
    arguments = case.arguments()
    outputs = case.outputs(arguments)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    buffers = [Buffer.of(name, value, name in outputs) for name, value in tensors.items()]
    result = {"wrong": None, "findings": [], "kernels": [], "count": None}
    try:
        run = LANGUAGES[language].call(case.op, buffers, list(arguments.values()), plant)
        result |= {"findings": run.findings, "kernels": run.kernels, "count": run.instructions / case.elements}
        check(case, outputs)
    except Exception as error:
        result["wrong"] = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            print(traceback.format_exc(), file=sys.stderr)
    return result


def row(name):
    """`name`: a language and a case, perhaps with a plant before it."""
    first, _, rest = name.partition(" ")
    if first == "inductor":
        return inductor(CASES[rest])
    if first in plants.PLANTS:
        language, case, plant, _ = plants.PLANTS[first]
        return measured(language, CASES[case], plant)
    return measured(first, CASES[rest])


def rows(name):
    """The row of this name, or the counted ones whose names begin so."""
    return [each for each in kept.names() if each.startswith(f"{name} ")] or [name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    wanted, found = [each for name in options.names for each in rows(name)] or kept.names(), {}
    for name in wanted:
        found[name] = row(name)
        print(json.dumps({"name": name, **found[name]}), flush=True)
        if options.update:
            kept.update(found)
    if options.update:
        for name, share in kept.too_many(kept.read()["rows"]).items():
            print(f"{name}: {share} of inductor's")


if __name__ == "__main__":
    main()
