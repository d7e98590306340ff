"""Compiles csrc/cuda/*.cu and csrc/bindings.cpp with the host compiler against tests/simt/include, once per content."""

import concurrent.futures
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/simt")
PLACE = Path("build/simt")
FLAGS = shlex.split("-O1 -std=c++17 -fPIC -ffp-contract=off -fvisibility=hidden -fno-strict-aliasing -w")
INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
SYMBOL = re.compile(r"([0-9a-f]+) [tTwW] (?:void )?(?:\w+::|\(anonymous namespace\)::)*(\w+(?:<[^(]*>)?)\(")


def compiler():
    """The C++ compiler's command, None without one."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    return command if shutil.which(command[0]) else None


def sources():
    patterns = "csrc/bindings.cpp", "csrc/cuda/*.cu", f"{HERE}/*.cpp", f"{HERE}/*.cu"
    return [path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def included(path, seen=None):
    """The texts of a source and of all that it includes by a name in quotes, where that lies beside it."""
    seen = set() if seen is None else seen
    if path in seen or not path.exists():
        return []
    seen.add(path)
    text = path.read_text()
    return [text, *(each for name in INCLUDE.findall(text) for each in included((path.parent / name).resolve(), seen))]


def library():
    """Path of the library, built where its sources have changed."""
    import fcntl

    import pybind11

    (ROOT / PLACE).mkdir(parents=True, exist_ok=True)
    with open(ROOT / PLACE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        include = ["-I", str(HERE / "include"), "-I", "csrc/cuda"]
        include += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        command = [*compiler(), *FLAGS, "-DFD_CUDA", *include]
        return _build(command)


def _build(command):
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    common = digest(version, *command, *(path.read_text() for path in sorted((ROOT / HERE / "include").iterdir())))
    objects = {PLACE / f"{path.stem}-{digest(common, *included(ROOT / path))}.o": path for path in sources()}
    result = PLACE / f"simt-{digest(*map(str, objects))}.so"
    if not (ROOT / result).exists():
        missing = [each for each in objects.items() if not (ROOT / each[0]).exists()]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda each: _run([*command, "-x", "c++", "-c", str(each[1])], each[0]), missing))
        _run([command[0], "-shared", *map(str, objects), "-ldl"], result)
        for path in {*(ROOT / PLACE).glob("*.*o")} - {ROOT / path for path in (*objects, result)}:
            path.unlink()
    return ROOT / result


def _run(command, output):
    partial = output.with_suffix(".partial")
    done = subprocess.run([*command, "-o", str(partial)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} fails:\n{done.stderr}")
    os.replace(ROOT / partial, ROOT / output)


def functions(path):
    """The functions of a library, by their place in it."""
    listing = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
    return {int(found[1], 16): found[2] for found in map(SYMBOL.match, listing.splitlines()) if found}
