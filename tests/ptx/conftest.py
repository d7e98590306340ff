"""One process for all rows that this session runs: Triton cannot interpret and compile in the same."""

import json
import subprocess
import sys

import pytest

from . import simulator


@pytest.fixture(scope="session")
def results(request):
    """What tests.ptx.run found, by row; of the rows that the session's tests name."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = list(dict.fromkeys(name for each in parameters for name in [each.get("row"), *each.get("rows", [])] if name))
    done = subprocess.run([sys.executable, "-m", "tests.ptx.run", *names], cwd=simulator.ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(names), done.stderr
    return {line["name"]: line for line in lines}
