"""Builds fastdiff._C from csrc/ with ninja: C++ once per SIMD level, CUDA where nvcc is found. No torch is needed.

    FASTDIFF_CUDA        auto (the default: the CUDA half where nvcc is found and works), 1 (must be there) or 0 (never)
    FASTDIFF_CUDA_ARCHS  compute capabilities, by default those of "80;90;100" that nvcc knows; the newest also as PTX
    CUDA_HOME, CXX       where to find nvcc (else PATH, then /usr/local/cuda) and the C++ compiler
    MAX_JOBS             compilers at a time, by default one per processor

Objects stay in build/native-<machine>, so any later build compiles only what changed. What was built, and why something
was not, is written to fastdiff/_build.json for `fastdiff doctor`.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, OptionError, PlatformError

try:
    import fcntl
except ImportError:  # Windows, where nothing native is built
    fcntl = None

ROOT = Path(__file__).resolve().parent
CUDA_ARCHS = "80;90;100"
# -O3 takes longer, for kernels that are no faster, but for OPTIMISED: what must be unrolled says so.
CXX_FLAGS = "-std=c++17 -O2 -fPIC -ffp-contract=off -fno-math-errno -fvisibility=hidden -Wall -Wextra -Wno-psabi"
# -O is that of host code, which does no more than launch; that of kernels is 3.
NVCC_FLAGS = "-O1 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
UNSAID = r"grep -v '^ptxas info\|^    [0-9]'"  # each kernel's resources stay in the log, for the static numbers
LOWERED_ALIKE = 100  # what nvcc makes of a source for an architecture before this is the same PTX, and from this on
# GCC 12 takes its own _mm512_undefined_ps for an uninitialized variable
AVX512 = (
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mavx2 -mf16c -mprefer-vector-width=512 "
    "-Wno-maybe-uninitialized -Wno-uninitialized"
)
LEVELS = {
    "avx512bf16": f"{AVX512} -mavx512bf16",
    "avx512": AVX512,
    "avx2": "-mavx2 -mfma -mf16c",
    "baseline": "",
}
COMPILED_ONCE = ("dispatch", "parallel")
OPTIMISED = ("group_norm_silu", "rms_norm_silu_backward")
BY_HAND = ("conv3x3", "conv3x3_backward", "convolution")  # intrinsics in unrolled loops, no slower for -O1
HAS_BFLOAT16 = ("group_norm_silu", "group_norm_silu_backward", "convolution")  # what avx512bf16 does unlike avx512
PRECOMPILED = ("avx512", "avx2")  # GCC reads its intrinsics, most of a second, once for all sources of these levels
INTRINSICS = "#include <immintrin.h>\n"


class Missing(Exception):
    """Something to build with is not there; recorded, and an error only where it was asked for."""


@dataclass
class Cxx:
    command: str
    version: str
    machine: str
    openmp: bool

    @property
    def levels(self):
        return list(LEVELS) if self.machine == "x86_64" else ["baseline"]

    @property
    def flags(self):
        own = " -fopenmp" if self.openmp else " -Wno-unknown-warning-option"
        return CXX_FLAGS + own + " -DFD_X86" * (self.machine == "x86_64")


@dataclass
class Nvcc:
    command: str
    version: str
    archs: list
    host_compiler: str
    libraries: str

    @property
    def codes(self):
        """(architecture of the PTX, what is made of it)."""
        for group in ([a for a in self.archs if a < LOWERED_ALIKE], [a for a in self.archs if a >= LOWERED_ALIKE]):
            if group:
                yield from ((group[0], f"sm_{arch}") for arch in group)
                yield group[0], f"compute_{group[0]}"

    @property
    def flags(self):
        """PTX is made once for architectures that it is the same for, and kept as well, for the static numbers."""
        codes = [f"-gencode arch=compute_{low},code={code}" for low, code in self.codes]
        return " ".join([NVCC_FLAGS, *codes]) + (f" -ccbin {self.host_compiler}" if self.host_compiler else "")


def output_of(*command):
    """What a command prints, its input being empty."""
    try:
        return subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise Missing(f"{shlex.join(command)} fails: {detail}") from None


def find_cxx(env):
    """The C++ compiler; Missing where nothing native can be built."""
    if sys.platform != "linux":
        raise Missing(f"the C++ kernels are built on Linux only, not on {sys.platform}")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Missing("Python.h is not there: install Python's development package, such as python3-dev")
    found = [name for name in ("c++", "g++", "clang++") if shutil.which(name, path=env.get("PATH", ""))]
    command = shlex.split(env.get("CXX", "")) or found[:1]
    if not command:
        raise Missing("no C++ compiler: CXX is not set, and PATH has no c++, g++ or clang++")
    try:
        return describe_cxx(command)
    except Missing as error:
        if env.get("CXX"):
            raise PlatformError(f"CXX must be a C++ compiler, got {env['CXX']!r}: {error}") from None
        raise


def describe_cxx(command):
    defines = [line.split(" ", 2) for line in output_of(*command, "-dM", "-E", "-x", "c++", "-").splitlines()]
    macros = {name: value for _, name, value in filter(lambda define: len(define) == 3, defines)}
    version = macros.get("__VERSION__", "").strip('"')
    return Cxx(
        command=shlex.join(command),
        version=version if "__clang__" in macros else f"GCC {version}",
        machine=next((name for name in ("x86_64", "aarch64") if f"__{name}__" in macros), "other"),
        openmp="__clang__" not in macros,
    )


def cuda_wish(env):
    wish = env.get("FASTDIFF_CUDA", "auto") or "auto"
    if wish not in ("auto", "0", "1"):
        raise OptionError(f"FASTDIFF_CUDA must be auto, 1 or 0, got {wish!r}")
    return wish


def find_nvcc(env):
    """Path of nvcc; Missing where there is none."""
    home = env.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [env.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    if found:
        return found
    where = "in CUDA_HOME/bin" if home else "on PATH or in /usr/local/cuda, and CUDA_HOME is not set"
    raise Missing(f"no nvcc {where}")


def parse_archs(text, known):
    """Ascending compute capabilities from "80;90;100" or "8.0 9.0"; from "" the known ones of CUDA_ARCHS."""
    if not text:
        archs = [int(arch) for arch in CUDA_ARCHS.split(";") if int(arch) in known]
        if not archs:
            raise Missing(f"nvcc knows none of the compute capabilities {CUDA_ARCHS}")
        return archs
    items = re.split(r"[;,\s]+", text.strip(";, "))
    if not all(re.fullmatch(r"\d+\.\d|\d{2,3}", item) for item in items):
        raise OptionError(f'FASTDIFF_CUDA_ARCHS must be compute capabilities such as "80;90;100", got {text!r}')
    archs = sorted({int(item.replace(".", "")) for item in items})
    unknown = [arch for arch in archs if arch not in known]
    if unknown:
        raise OptionError(f"FASTDIFF_CUDA_ARCHS must be known to nvcc ({', '.join(map(str, known))}), got {unknown[0]}")
    return archs


def make_nvcc(env):
    """The CUDA compiler with the architectures to build; Missing where there is none."""
    command = find_nvcc(env)
    known = sorted(int(arch) for arch in re.findall(r"compute_(\d+)\b", output_of(command, "--list-gpu-arch")))
    version = re.search(r"V([\d.]+)", output_of(command, "--version")).group(1)
    dry_run = subprocess.run([command, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    libraries = re.search(r"LIBRARIES=(.*)", dry_run)
    return Nvcc(
        command=shlex.quote(command),
        version=version,
        archs=parse_archs(env.get("FASTDIFF_CUDA_ARCHS", ""), known),
        host_compiler=env.get("CXX", "") if len(env.get("CXX", "").split()) == 1 else "",
        libraries=libraries.group(1).strip() if libraries else "",
    )


def jobs(env):
    text = env.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"MAX_JOBS must be a positive integer, got {text!r}")
    return int(text)


def write_if_changed(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def point(link, target):
    """Make `link` a symbolic link to `target`, whatever it was before."""
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)


class NinjaFile:
    """build/native-<machine>/build.ninja; every path in it is relative to the root of the repository."""

    def __init__(self, root, cxx, nvcc):
        self.root, self.cxx, self.nvcc = root, cxx, nvcc
        self.directory = Path("build") / f"native-{cxx.machine}"
        self.path = self.directory / "build.ninja"
        self.library = self.directory / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

    def write(self):
        from ninja.ninja_syntax import Writer

        (self.root / self.directory).mkdir(parents=True, exist_ok=True)
        with open(self.root / self.path, "w") as file:
            self.writer = Writer(file, width=120)
            self.writer.variable("builddir", str(self.directory))
            self._rules()
            objects = [*self._cuda(), self._bindings(), *self._cpu()]
            self._link(objects)

    def _rules(self):
        depfile = {"deps": "gcc", "depfile": "$out.d"}
        self.writer.rule("cxx", f"{self.cxx.command} {self.cxx.flags} $flags -MMD -MF $out.d -c $in -o $out", **depfile)
        self.writer.rule("header", f"{self.cxx.command} {self.cxx.flags} $flags -x c++-header -c $in -o $out")
        self.writer.rule("link", f"{self.cxx.command} -shared -Wl,-s $in -o $out $flags")
        if self.nvcc:
            compile = f"{self.nvcc.command} {self.nvcc.flags} -Xptxas=-v -MMD -MF $out.d -c $in -o $out"
            told = f"{compile} >$out.log 2>&1; status=$$?; {UNSAID} $out.log; exit $$status"
            self.writer.rule("nvcc", told, **depfile)

    def _stamp(self, rule, compiler):
        stamp = write_if_changed(self.root / self.directory / f"{rule}.version", compiler.version)
        return str(stamp.relative_to(self.root))

    def _object(self, rule, name, source, compiler, flags="", precompiled=()):
        """One object, compiled again when the compiler's version changes."""
        target = str(self.directory / f"{name}.o")
        variables = {"flags": flags} if flags else None
        implicit = [self._stamp(rule, compiler), *precompiled]
        self.writer.build(target, rule, str(source), implicit=implicit, variables=variables)
        return target

    def _sources(self, pattern):
        """The longest first: a compile that is begun last and takes long would be waited for alone."""
        paths = sorted(self.root.glob(f"csrc/{pattern}"), key=lambda path: (-path.stat().st_size, path.name))
        return [path.relative_to(self.root) for path in paths]

    def _cuda(self):
        sources = self._sources("cuda/*.cu") if self.nvcc else []
        return [self._object("nvcc", f"cuda/{source.stem}", source, self.nvcc) for source in sources]

    def _cpu(self):
        sources = self._sources("cpu/*.cpp")
        for source in (source for source in sources if source.stem in COMPILED_ONCE):
            yield self._object("cxx", f"cpu/{source.stem}", source, self.cxx)
        levels = {level: self._level(level) for level in self.cxx.levels}
        for source in (source for source in sources if source.stem not in COMPILED_ONCE):
            for level, (flags, precompiled) in levels.items():
                if level != "avx512bf16" or source.stem in HAS_BFLOAT16:
                    own = "-O3 " * (source.stem in OPTIMISED) + "-O1 " * (source.stem in BY_HAND) + flags
                    yield self._object("cxx", f"cpu/{level}/{source.stem}", source, self.cxx, own, precompiled)

    def _level(self, level):
        """Flags of a SIMD level, and the header that GCC has read for it."""
        flags = f"-DFD_LEVEL={level} {LEVELS[level]}".strip()
        if level == "baseline" and self.cxx.machine == "x86_64":
            flags += " -O1"  # for processors from before 2013 nobody waits a fifth longer
        if level not in PRECOMPILED or not self.cxx.version.startswith("GCC"):
            return flags, []
        header = self.directory / "cpu" / level / "intrinsics.h"
        write_if_changed(self.root / header, INTRINSICS)
        stamp, variables = self._stamp("cxx", self.cxx), {"flags": flags}
        precompiled = self.writer.build(f"{header}.gch", "header", str(header), implicit=stamp, variables=variables)
        return f"{flags} -include {header}", precompiled

    def _bindings(self):
        """pip gives each isolated build another pybind11 path: only a link to it is named, and -MMD skips its files."""
        import pybind11

        link = Path("build") / f"pybind11-{pybind11.__version__}"
        point(self.root / link, pybind11.get_include())
        flags = f"-O1 -isystem {link} -isystem {shlex.quote(sysconfig.get_path('include'))}"
        if self.nvcc:
            flags += f" -DFD_CUDA -DFD_CUDA_ARCHS={','.join(map(str, self.nvcc.archs))}"
        name, source = self.library.stem.replace("_C", "bindings"), Path("csrc/bindings.cpp")
        return self._object("cxx", name, source, self.cxx, flags)

    def _link(self, objects):
        exports = write_if_changed(self.root / self.directory / "exports.map", "{ global: PyInit__C; local: *; };\n")
        exports = exports.relative_to(self.root)
        flags = f"-Wl,--version-script={exports}" + " -fopenmp" * self.cxx.openmp
        if self.nvcc:
            flags += f" {self.nvcc.libraries} -lcudart_static -ldl -lrt -lpthread"
        self.writer.build(str(self.library), "link", objects, implicit=str(exports), variables={"flags": flags})
        self.writer.default(str(self.library))

    def run(self, jobs):
        """Build the library; CompileError names the first error."""
        import ninja

        places = os.pathsep.join(place for place in (ninja.BIN_DIR, os.environ.get("PATH", "")) if place)
        command = [shutil.which("ninja", path=places) or "ninja", "-f", str(self.path), "-j", str(jobs)]
        kernels = max(1, len(self._sources("cuda/*.cu")))
        env = dict(os.environ)  # how many architectures one nvcc compiles at a time is no reason to compile again
        env["NVCC_APPEND_FLAGS"] = f"{env.get('NVCC_APPEND_FLAGS', '')} --threads {max(1, jobs // kernels)}".strip()
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        lines = []
        with subprocess.Popen(command, cwd=self.root, env=env, text=True, **output) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.strip())
        if process.returncode:
            raise CompileError(next((line for line in lines if "error" in line.lower()), lines[-1]))


@contextlib.contextmanager
def locked(directory):
    """One build at a time in one tree."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_native(root, env):
    """Build what can be built: (path of the library or None, the record that becomes _build.json)."""
    record = {"compiler": None, "simd_levels": [], "openmp": False, "nvcc": None, "cuda_archs": [], "reasons": {}}
    reasons, wish = record["reasons"], cuda_wish(env)
    try:
        cxx = find_cxx(env)
    except Missing as error:
        if wish == "1":
            raise PlatformError(f"FASTDIFF_CUDA=1 needs a C++ compiler as well: {error}") from None
        reasons["cpu"] = reasons["cuda"] = str(error)
        return None, record
    record.update(compiler=cxx.version, simd_levels=cxx.levels, openmp=cxx.openmp)
    if not cxx.openmp:
        reasons["openmp"] = "clang has an OpenMP runtime of its own, which would not share torch's threads"
    nvcc = choose_nvcc(wish, env, reasons)
    library, nvcc = compile_library(root, cxx, nvcc, wish, env, reasons)
    if nvcc:
        record.update(nvcc=nvcc.version, cuda_archs=nvcc.archs)
    return library, record


def choose_nvcc(wish, env, reasons):
    if wish == "0":
        reasons["cuda"] = "built with FASTDIFF_CUDA=0"
        return None
    try:
        return make_nvcc(env)
    except Missing as error:
        if wish == "1":
            raise PlatformError(f"FASTDIFF_CUDA=1 needs nvcc: {error}") from None
        reasons["cuda"] = str(error)
        return None


def compile_library(root, cxx, nvcc, wish, env, reasons):
    """The library, and the nvcc it was built with; where the CUDA half fails in auto, the C++ half alone."""
    build = NinjaFile(root, cxx, nvcc)
    try:
        build.write()
        build.run(jobs(env))
    except ModuleNotFoundError as error:
        raise PlatformError(f"the build needs the Python package {error.name}: pip install pybind11 ninja") from None
    except CompileError as error:
        if not nvcc or wish == "1":
            raise
        library, _ = compile_library(root, cxx, None, wish, env, reasons)
        reasons["cuda"] = f"the CUDA half failed to compile: {error}"
        return library, None
    return root / build.library, nvcc


def place(source, destination):
    """Copy without a moment in which the destination is missing or half written: it may be in use."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f"{destination.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, destination)


class BuildNative(build_ext):
    """build_ext through ninja; into the source tree for `--inplace` and editable installs."""

    def run(self):
        with locked(ROOT / "build"):
            library, record = build_native(ROOT, os.environ)
            if library is None:
                self.warn(f"fastdiff is installed without its C++ kernels: {record['reasons']['cpu']}")
            record = {"version": self.distribution.get_version(), **record}
            record_file = write_if_changed(ROOT / "build" / "_build.json", json.dumps(record, indent=2) + "\n")
            package = (ROOT if self.inplace else Path(self.build_lib)) / "fastdiff"
            target = package / Path(self.get_ext_filename("fastdiff._C")).name
            place(record_file, package / "_build.json")
            if library:
                place(library, target)
            else:
                target.unlink(missing_ok=True)  # an older build's, which may differ from these sources


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("fastdiff._C", sources=[], optional=True)],
        cmdclass={"build_ext": BuildNative},
    )
