"""The table of static numbers: kept as JSON with a row on each line, printed, compared."""

import json
from dataclasses import dataclass
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "static.json"
KEY = ("language", "kernel", "case", "arch")
MORE_IS_WORSE = ("registers", "spill", "stack", "shared", "dynamic", "trig")
LESS_IS_WORSE = ("occupancy", "load", "store")
OF_TOOLCHAIN = ("registers", "shared", "occupancy")  # differ between versions of a compiler
COLUMNS = (*KEY, "registers", "spill", "stack", "shared", "dynamic", "threads", "occupancy", "load", "store", "trig")


def key(row):
    return tuple(row[name] for name in KEY)


def order(row):
    return tuple("" if row[name] is None else row[name] for name in KEY)


@dataclass
class Table:
    toolchain: dict  # version of the compiler by language
    rows: list

    def __post_init__(self):
        self.rows = sorted(self.rows, key=order)
        if len({key(row) for row in self.rows}) < len(self.rows):
            raise ValueError("rows must differ in their kernel, case or architecture")

    @classmethod
    def read(cls, path):
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path):
        rows = ",\n".join("  " + json.dumps({name: row[name] for name in COLUMNS}) for row in self.rows)
        Path(path).write_text(f'{{"toolchain": {json.dumps(self.toolchain)}, "rows": [\n{rows}\n]}}\n')

    def covers(self, row):
        """Whether the row's language and architecture were compiled."""
        return any(row["language"] == mine["language"] and row["arch"] == mine["arch"] for mine in self.rows)

    def updated(self, newer):
        """This table with the rows of what the newer one compiled replaced."""
        rows = [row for row in self.rows if not newer.covers(row)] + newer.rows
        return Table({**self.toolchain, **newer.toolchain}, rows)

    def lines(self):
        cells = [COLUMNS, *([_cell(name, row[name]) for name in COLUMNS] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
        text = KEY.index("arch")
        for row in cells:
            left = [cell.ljust(width) for cell, width in zip(row[:text], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(row[text:], widths[text:], strict=True)]
            yield "  ".join(left + right).rstrip()


def _cell(name, value):
    if name == "arch":
        return f"sm_{value}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def label(row):
    case = f" ({row['case']})" if row["case"] else ""
    return f"{row['language']} {row['kernel']}{case}, sm_{row['arch']}"


def worsened(kept, found):
    """What is worse in `found`, or not in both tables, a line each; of what `found` compiled."""
    before, after = ({key(row): row for row in table.rows if found.covers(row)} for table in (kept, found))
    lines = [f"{label(before[k])}: no longer compiled" for k in before if k not in after]
    lines += [f"{label(after[k])}: not in the kept table" for k in after if k not in before]
    for k in after:
        if k in before:
            same = kept.toolchain.get(k[0]) == found.toolchain.get(k[0])
            lines += [f"{label(after[k])}: {change}" for change in changes(before[k], after[k], same)]
    return lines


def changes(before, after, same_toolchain):
    """What got worse from a row to the other."""
    for name in (*MORE_IS_WORSE, *LESS_IS_WORSE):
        if name in OF_TOOLCHAIN and not same_toolchain:
            continue
        worse = after[name] > before[name] if name in MORE_IS_WORSE else after[name] < before[name]
        if worse:
            yield f"{name} {_cell(name, before[name])} became {_cell(name, after[name])}"
