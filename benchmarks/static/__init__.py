"""What the compilers make of every GPU kernel, a row for each specialisation and architecture; no GPU is needed.

| field | |
|---|---|
| language, kernel, case, arch | which; `case` names a call in cases.py that launches it, None: none does |
| registers, spill, stack | of a thread; bytes of spill stores and loads, bytes of local memory |
| shared, dynamic | bytes of a block; of CUDA kernels `dynamic` is the most that a case asks for |
| threads | of a block; of CUDA kernels the most that a case launches, else that the kernel allows |
| occupancy | percent of a multiprocessor's warps that registers, shared memory and threads leave room for |
| load, store | bytes of a thread's widest access to global memory |
| trig | whether there are a hardware sine or cosine, or the slow path of an accurate one |

Registers and what follows from them are a toolchain's; tables of different ones are compared in the rest alone.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from . import aot, cuda
from .table import KEPT, Table, worsened

LANGUAGES = {"triton": aot, "cuda": cuda}
ARCHS = cuda.ARCHS

__all__ = ["ARCHS", "KEPT", "LANGUAGES", "Table", "collect", "worsened"]


def collect(languages=tuple(LANGUAGES), archs=ARCHS, cases=None):
    """(Table, reasons by language that could not be compiled). cases: names of those to compile for; None: all."""
    reasons = {name: LANGUAGES[name].unavailable() for name in languages}
    reasons = {name: reason for name, reason in reasons.items() if reason}
    found = [name for name in languages if name not in reasons]
    tasks = [task for name in found for task in LANGUAGES[name].tasks(archs, cases)]
    threads = max(len(archs), len(os.sched_getaffinity(0)))  # that wait: longest for Triton, once per arch
    with ThreadPoolExecutor(threads) as pool:
        rows = [row for some in pool.map(lambda task: list(task()), tasks) for row in some]
    return Table({name: LANGUAGES[name].version() for name in found}, rows), reasons
