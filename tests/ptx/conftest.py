"""One process for all rows of a run of pytest: Triton cannot interpret and compile in the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import simulator


@pytest.fixture(scope="session")
def results(request):
    """What tests.ptx.run found, by row; of the rows that its tests name."""
    mine = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    parameters = [item.callspec.params for item in mine if hasattr(item, "callspec")]
    rows = (row for each in parameters for row in [each.get("row"), *each.get("rows", [])])
    names = list(dict.fromkeys(row for row in rows if row))
    command = [sys.executable, "-m", "tests.ptx.run", *names]
    done = subprocess.run(command, cwd=simulator.ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(names), done.stderr
    return {line["name"]: line for line in lines}
