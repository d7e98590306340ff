"""Block sizes of the Triton kernels: by shape from a small table, never from an autotuner at a first call.

BUILT_IN is the table. `fastdiff tune` times others on a GPU and writes what is faster there to the user's cache, from
where it is read when that GPU is first used. The table decides the order of sums in norms and losses: a tuned one gives
other last bits than the built-in one, each always the same.
"""

import contextlib
import functools
import json
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

ANY = 2**63 - 1
WHOLE = 0
BLOCKS = {  # what a block may be, of each kind of kernels
    "image": (256, 4096),
    "group_norm_silu": (1024, 16384),
    "group_norm_silu_backward": (1024, 16384),
    "rms_norm_silu": (1024, 8192),
    "rms_norm_silu_backward": (1024, 8192),
}
PER_WARP = {kind: (128, 512 if kind == "image" else 1024) for kind in BLOCKS}  # 4 to 16 or 32 elements a lane
MASKED = 256  # elements that a warp has at most where not all of a tile exist: more would spill


class Row(NamedTuple):
    kind: str      # of kernels
    most: int      # elements: of a sample, for group norms of a tile that holds whole groups
    block: int     # elements of a program's tile; WHOLE: all groups that it begins
    per_warp: int  # elements of it that a warp has

    def warps(self, elements, full=True):
        """Of a tile of so many elements; masks take registers, so that a lane of tiles that are not full has fewer."""
        per_warp = self.per_warp if full else min(self.per_warp, MASKED)
        return min(16, max(1, elements // per_warp))


# The first row of a kind that is large enough counts. Some are alike: they are tuned apart.
BUILT_IN = (
    Row("image", 4096, 1024, 256),
    Row("image", ANY, 1024, 256),
    Row("group_norm_silu", 4096, WHOLE, 1024),
    Row("group_norm_silu", 16384, WHOLE, 1024),
    Row("group_norm_silu", ANY, 4096, 1024),
    Row("group_norm_silu_backward", 8192, WHOLE, 1024),
    Row("group_norm_silu_backward", 16384, WHOLE, 1024),
    Row("group_norm_silu_backward", ANY, 4096, 1024),
    Row("rms_norm_silu", ANY, 4096, 1024),
    Row("rms_norm_silu_backward", ANY, 4096, 1024),
)
_trial = None


def row(kind, elements, tensor):
    """The row for a tensor's device."""
    return next(each for each in rows(tensor) if each.kind == kind and elements <= each.most)


def rows(tensor):
    if _trial is not None:
        return _trial
    return _of_gpu(tensor.device.index) if tensor.is_cuda else BUILT_IN


@functools.cache
def _of_gpu(index):
    return read(torch.cuda.get_device_name(index))


@contextlib.contextmanager
def using(table):
    """Every tensor's table in this context."""
    global _trial
    check(table)
    before, _trial = _trial, table
    try:
        yield
    finally:
        _trial = before


def check(table):
    """Raises ValueError where a row is beyond its limits, or a kind's rows do not cover every shape in order."""
    for each in table:
        _check_row(each)
    for kind in BLOCKS:
        most = [each.most for each in table if each.kind == kind]
        if most != sorted(set(most)) or most[-1:] != [ANY]:
            raise ValueError(f"rows of {kind} must be for more and more elements, the last for any, got {most}")


def _check_row(each):
    if each.kind not in BLOCKS:
        raise ValueError(f"kind must be one of {', '.join(BLOCKS)}, got {each.kind!r}")
    numbers = (each.most, each.block, each.per_warp)
    if not all(type(number) is int for number in numbers):
        raise ValueError(f"most, block and per_warp must be integers, got {numbers}")
    least, most = BLOCKS[each.kind]
    if each.block == WHOLE and each.kind.startswith("group_norm"):
        if not 0 < each.most <= most:
            raise ValueError(f"most of whole groups of {each.kind} must be in [1, {most}], got {each.most}")
    elif not (_is_power_of_two(each.block) and least <= each.block <= most):
        raise ValueError(f"block of {each.kind} must be a power of two in [{least}, {most}], got {each.block}")
    least, most = PER_WARP[each.kind]
    if not (_is_power_of_two(each.per_warp) and least <= each.per_warp <= most):
        raise ValueError(f"per_warp of {each.kind} must be a power of two in [{least}, {most}], got {each.per_warp}")


def _is_power_of_two(n):
    return n > 0 and n & (n - 1) == 0


def path(gpu):
    """Where a GPU's table is kept: in FASTDIFF_HOME, else XDG_CACHE_HOME/fastdiff, else ~/.cache/fastdiff."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("FASTDIFF_HOME") or os.path.join(cache, "fastdiff")
    return Path(home).expanduser() / f"blocks-{re.sub('[^a-z0-9]+', '-', gpu.lower())}.json"


def read(gpu):
    """The tuned table of a GPU, else the built-in one; a file that is no table is told of and left aside."""
    file = path(gpu)
    if not file.exists():
        return BUILT_IN
    try:
        table = tuple(Row(*each) for each in json.loads(file.read_text())["rows"])
        check(table)
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{file} is no table of block sizes ({error!r}): the built-in one is used; "
                      "`fastdiff tune` writes it anew", stacklevel=2)  # fmt: skip
        return BUILT_IN
    return table


def to_json(gpu, table):
    lines = ",\n".join(f"  {json.dumps(list(each))}" for each in table)
    return f'{{"gpu": {json.dumps(gpu)}, "rows": [\n{lines}\n]}}\n'


def candidates(each):
    """The row, and those with half and twice its block and elements of a warp, within the limits."""
    found = []
    for block in {each.block, each.block // 2, each.block * 2}:
        for per_warp in (each.per_warp, each.per_warp // 2, each.per_warp * 2):
            other = each._replace(block=block, per_warp=per_warp)
            with contextlib.suppress(ValueError):
                _check_row(other)
                found.append(other)
    return sorted(found, key=lambda other: (other != each, other))


def tuned(time, margin=0.03):
    """The built-in table with each row replaced by the fastest of its candidates, if that is faster by the margin.

    time(row): seconds that the row's work takes by the table in use.
    """
    table = list(BUILT_IN)
    for i, each in enumerate(BUILT_IN):
        seconds = {}
        for other in candidates(each):
            with using((*table[:i], other, *table[i + 1 :])):
                seconds[other] = time(each)
        best = min(seconds, key=seconds.get)
        table[i] = best if seconds[best] < (1 - margin) * seconds[each] else each
    return tuple(table)
