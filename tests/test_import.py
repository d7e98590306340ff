"""What `import fastdiff` costs and loads, and who imports whom (DESIGN: a matrix of ops and backends)."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastdiff"

# What a subpackage may import of fastdiff, beside itself; None: everything.
MAY_IMPORT = {
    "ops": {"_C", "build_info"},
    "processes": {"ops"},
    "models": {"files", "ops"},
    "samplers": {"capture", "files", "ops", "processes"},
    "training": {"capture", "files", "ops", "processes"},
    "evaluation": {"data", "ops", "processes", "samplers"},
    "integrations": {"ops", "samplers", "processes", "models"},
    "data": {"files"},
    "cli": None,
}
BACKENDS = ("native", "reference", "triton")

IMPORT = """
import json, sys, time, torch
before = set(sys.modules)
start = time.process_time()  # other work on the machine costs none of it
import fastdiff
seconds = time.process_time() - start
print(json.dumps({
    "seconds": seconds,
    "packages": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
    "cuda": torch.cuda.is_initialized(),
}))
"""


def imported():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FASTDIFF", "TRITON"))}
    output = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(output.stdout)


def test_import_is_quick_and_loads_nothing_optional():
    runs = [imported() for _ in range(3)]
    assert min(run["seconds"] for run in runs) < 0.3
    third_party = set(runs[0]["packages"]) - set(sys.stdlib_module_names) - {"fastdiff"}
    assert {name for name in third_party if not name.startswith("_")} <= {"torch", "numpy"}
    assert not runs[0]["cuda"]


def modules():
    """Every module of fastdiff: dotted name, syntax tree, whether it is a package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text()), path.name == "__init__.py"


def imports(name, tree, is_package):
    """Names below fastdiff that a module imports anywhere in its text, such as "ops.native" or "ops.rng.INITIAL"."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (target.partition(".")[2] for target in targets if target.partition(".")[0] == "fastdiff")


SUBPACKAGES = [(name.split(".")[1], name, tree, is_package) for name, tree, is_package in modules() if "." in name]


@pytest.mark.parametrize("subpackage", [name for name, allowed in MAY_IMPORT.items() if allowed is not None])
def test_layers(subpackage):
    allowed = MAY_IMPORT[subpackage] | {subpackage}
    targets = [
        (name, target) for mine, name, *tree in SUBPACKAGES if mine == subpackage for target in imports(name, *tree)
    ]
    assert not [
        f"{name} imports fastdiff.{target}" for name, target in targets if target.partition(".")[0] not in allowed
    ]


def test_every_subpackage_has_its_layer():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(MAY_IMPORT)


def test_ops_reach_backends_by_name_and_backends_not_one_another():
    for mine, name, tree, is_package in SUBPACKAGES:
        if mine != "ops":
            continue
        own = [part.partition("_")[0] for part in name.split(".")[2:3]]  # native_conv3x3 is of native
        targets = {target.split(".")[1] for target in imports(name, tree, is_package) if target.startswith("ops.")}
        assert targets & set(BACKENDS) <= set(own), f"{name} imports {targets}"


def test_the_import_reader_sees_every_form():
    absolute = ast.parse("import fastdiff.a.b\nfrom fastdiff import c\nimport torch")
    assert set(imports("fastdiff.x.y", absolute, False)) == {"a.b", "c"}
    relative = ast.parse("from . import d\nfrom .e import f\nfrom ..g import h")
    assert set(imports("fastdiff.x.y", relative, False)) == {"x.d", "x.e.f", "g.h"}
    assert set(imports("fastdiff.x", ast.parse("from . import d\nfrom ..g import h"), True)) == {"x.d", "g.h"}


@pytest.mark.parametrize("folder", ["fastdiff", "csrc", "tests", "benchmarks"])
def test_no_drawer(folder):
    assert not [path for path in (ROOT / folder).rglob("*") if path.stem in ("util", "utils", "helpers", "misc")]
