"""Prints what the compilers make of every GPU kernel: registers, spills, memory, occupancy, widths. No GPU is needed.

The CUDA kernels are compiled where nvcc is found, Triton's where Triton is installed. The numbers are kept in
benchmarks/static.json; --check fails where one is worse than there. It takes a checkout of the repository.
"""

import importlib
import sys
from pathlib import Path

import fastdiff

ROOT = Path(fastdiff.__file__).resolve().parents[1]


def add_arguments(parser):
    parser.add_argument("--static", action="store_true", required=True, help="compile, run nothing")
    parser.add_argument("--arch", type=int, action="append", help="compute capability such as 90; repeat for several")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--check", action="store_true", help="list what is worse than the kept table, with status 1")
    kept.add_argument("--update", action="store_true", help="write the kept table")


def main(arguments):
    static = collector()
    table, reasons = static.collect(archs=arguments.arch or static.ARCHS)
    for language, reason in reasons.items():
        print(f"{language}: not compiled: {reason}", file=sys.stderr)
    if not table.rows:
        raise ValueError("nvcc or Triton must be there, got neither")
    if arguments.check:
        return check(static, table)
    print("\n".join(table.lines()))
    if arguments.update:
        kept = static.Table.read(static.KEPT).updated(table) if static.KEPT.exists() else table
        kept.write(static.KEPT)
    return 0


def collector():
    """benchmarks.static, which is not installed."""
    if not (ROOT / "benchmarks" / "static").is_dir():
        raise ValueError(f"fastdiff bench --static must run from a checkout of the repository, got {ROOT}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("benchmarks.static")


def check(static, table):
    """The exit status: 1 where the table is worse than the kept one."""
    worse = static.worsened(static.Table.read(static.KEPT), table)
    print("\n".join(worse) or f"{len(table.rows)} kernels, none worse than in {static.KEPT.name}")
    if worse:
        print("`fastdiff bench --static --update` keeps the new numbers: say in the commit why", file=sys.stderr)
    return int(bool(worse))
