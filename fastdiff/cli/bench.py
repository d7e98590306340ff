"""Times fastdiff against its peers; or prints what the compilers make of every GPU kernel, for which no GPU is needed.

Without --static the benchmark files run: times in --output (JSON), a Markdown table and a PNG chart (with matplotlib)
beside it. --compare tells which ratios have fallen since an earlier run, with status 1. With --static: registers,
spills, memory, occupancy, widths. The CUDA kernels are compiled where nvcc is found, Triton's where Triton is
installed; the numbers are kept in benchmarks/static.json, and --check fails where one is worse than there. With
--floor: the least time of each op on some GPUs, calculated from its bytes and their bandwidth; a run's Markdown has
them as well. All take a checkout of the repository.
"""

import importlib
import sys
from pathlib import Path

import fastdiff

from . import bench_runs

ROOT = Path(fastdiff.__file__).resolve().parents[1]


def add_arguments(parser):
    parser.add_argument("--static", action="store_true", help="compile, run nothing")
    parser.add_argument("--floor", action="store_true", help="calculate the least times on GPUs, run nothing")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="the times of a run (bench.json)")
    parser.add_argument("--select", help="run these alone, as pytest -k selects")
    parser.add_argument("--compare", type=Path, metavar="OLD.JSON", help="an earlier run's --output")
    parser.add_argument("--threshold", type=float, default=0.1, help="the share a ratio may fall by (0.1)")
    parser.add_argument("--arch", type=int, action="append", help="compute capability such as 90; repeat for several")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--check", action="store_true", help="list what is worse than the kept table, with status 1")
    kept.add_argument("--update", action="store_true", help="write the kept table")


def main(arguments):
    if arguments.floor:
        return floors(arguments)
    if not arguments.static:
        return timed(arguments)
    if arguments.select or arguments.compare:
        raise ValueError("--select and --compare must come without --static")
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


def floors(arguments):
    others = "static", "check", "update", "arch", "compare", "select"
    if any(getattr(arguments, name) for name in others):
        raise ValueError("--floor must come alone, got another option")
    print(of_checkout("benchmarks.floor").table())
    return 0


def timed(arguments):
    if arguments.check or arguments.update or arguments.arch:
        raise ValueError("--check, --update and --arch must come with --static")
    return bench_runs.main(arguments, ROOT, of_checkout("benchmarks.ratios"), of_checkout("benchmarks.floor"))


def collector():
    """benchmarks.static, which is not installed."""
    return of_checkout("benchmarks.static")


def of_checkout(name):
    if not (ROOT / "benchmarks" / "static").is_dir():
        raise ValueError(f"fastdiff bench must run from a checkout of the repository, got {ROOT}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name)


def check(static, table):
    """The exit status: 1 where the table is worse than the kept one."""
    worse = static.worsened(static.Table.read(static.KEPT), table)
    print("\n".join(worse) or f"{len(table.rows)} kernels, none worse than in {static.KEPT.name}")
    if worse:
        print("`fastdiff bench --static --update` keeps the new numbers: say in the commit why", file=sys.stderr)
    return int(bool(worse))
