"""What nvcc made and said of the CUDA kernels in the native build, which setup.py leaves in build/native-<machine>."""

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PTX = re.compile(r"^arch = sm_(\d+)\n(?:(?!^Fatbin).*\n)*?(?=^\.version)", re.MULTILINE)


def directory():
    return ROOT / "build" / f"native-{platform.machine()}"


def made(source, arch, version):
    """(PTX, what ptxas says) of a source for an architecture; None where the build is not of these very sources."""
    target = directory() / "cuda" / f"{source.stem}.o"
    if not (cuobjdump() and is_current(target, arch, version)):
        return None
    text = max((each for each in modules(target) if each[0] <= arch), default=(0, ""))[1]
    return text, target.with_name(f"{target.name}.log").read_text()


def is_current(target, arch, version):
    """Whether ninja, with the file that this setup.py wrote, has nothing to do for an object of the architecture."""
    file, log = target.parents[1] / "build.ninja", target.with_name(f"{target.name}.log")
    if not (ninja() and file.exists() and log.exists()):
        return False
    if file.stat().st_mtime < (ROOT / "setup.py").stat().st_mtime or f"code=sm_{arch} " not in file.read_text():
        return False
    if (file.parent / "nvcc.version").read_text() != version:
        return False
    command = [ninja(), "-n", "-f", file.relative_to(ROOT), target.relative_to(ROOT)]
    return "no work to do" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def ninja():
    """This environment's, else one on PATH; None where there is neither."""
    return shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@functools.cache
def cuobjdump():
    """CUDA's own or Triton's; None where there is neither."""
    triton = importlib.util.find_spec("triton")
    places = [Path(triton.origin).parent / "backends/nvidia/bin"] if triton else []
    return shutil.which("cuobjdump", path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))


def modules(path):
    """(architecture, text) of each PTX in an object or a library."""
    done = subprocess.run([cuobjdump(), "-ptx", path], capture_output=True, text=True, check=True)
    for part in done.stdout.split("\nFatbin "):
        found = _PTX.search(part)
        if found:
            yield int(found[1]), part[found.end() :]
