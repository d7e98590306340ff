"""setup.py: what it decides, what it compiles again, and what it says when something is missing.

Builds run on a small tree of stub sources with the real setup.py, without network access.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastdiff
from fastdiff import build_info
from fastdiff.ops import native

ROOT = Path(__file__).resolve().parents[1]
STEERING = ("CXX", "CUDA_HOME", "FASTDIFF_CUDA", "FASTDIFF_CUDA_ARCHS", "MAX_JOBS", "NVCC_APPEND_FLAGS")
NVCC_ARCHS = [75, 80, 86, 90, 100, 120]

needs_build_tools = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "ninja")) or not shutil.which("c++"),
    reason="needs setuptools, pybind11, ninja and a C++ compiler",
)
needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

STUBS = {
    "README.md": "stub",
    "fastdiff/__init__.py": '__version__ = "0.1.0"',
    "csrc/params.h": "#define ANSWER 42",
    "csrc/cpu/op.cpp": '#include "../params.h"\nnamespace FD_LEVEL { int op() { return ANSWER; } }',
    "csrc/cpu/group_norm_silu.cpp": "namespace FD_LEVEL { int norm() { return 1; } }",
    "csrc/cpu/parallel.cpp": "int parallel() { return 1; }",
    "csrc/cpu/dispatch.cpp": "namespace baseline { int op(); }\nint dispatch() { return baseline::op(); }",
    "csrc/bindings.cpp": """
        #include <Python.h>
        #include <pybind11/pybind11.h>
        int dispatch();
        int parallel();
        __attribute__((visibility("default"))) int exported_by_mistake() { return parallel(); }
        #ifdef FD_CUDA
        int launch();
        __attribute__((visibility("default"))) int another() { return launch(); }
        #endif
        PyMODINIT_FUNC PyInit__C() { return PyLong_FromLong(dispatch()); }
    """,
    "csrc/cuda/op.cu": "__global__ void kernel() {}\nint launch() { kernel<<<1, 1>>>(); return cudaGetLastError(); }",
}


@pytest.fixture(scope="module")
def build():
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("fastdiff_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def fake_pybind11(folder, version="3.0.0"):
    """Another place where pybind11 is installed."""
    code = f"__version__ = {version!r}\ndef get_include(): return {str(folder / 'include')!r}"
    write(folder, {"pybind11/__init__.py": code, "include/pybind11/pybind11.h": ""})
    return folder


class Tree:
    """A source tree of stubs around the real setup.py."""

    def __init__(self, folder):
        self.folder = folder
        write(folder, STUBS)
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        self.pybind11 = fake_pybind11(folder.parent / "pybind11")

    def run(self, *arguments, **env):
        """setup.py with these arguments: finished process, its output in stdout."""
        inherited = {name: value for name, value in os.environ.items() if name not in STEERING}
        env = {**inherited, "PYTHONPATH": str(self.pybind11), "FASTDIFF_CUDA": "0", **env}
        command = [sys.executable, "setup.py", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def build(self, **env):
        """Build in place: the objects made, such as "cpu/avx2/op"."""
        finished = self.run("build_ext", "--inplace", **env)
        assert finished.returncode == 0, finished.stdout
        commands = [line.split() for line in finished.stdout.splitlines() if line.startswith("[")]
        targets = [Path(words[words.index("-o") + 1]) for words in commands]
        self.says_no_work = "no work to do" in finished.stdout
        return {str(path.relative_to(self.objects)).split(".")[0] for path in targets}

    @property
    def objects(self):
        return next(path.relative_to(self.folder) for path in self.folder.glob("build/native-*"))

    @property
    def headers(self):
        """Those that are precompiled."""
        folder = self.folder / self.objects
        return {str(path.relative_to(folder)) for path in folder.glob("cpu/*/*.gch")}

    @property
    def record(self):
        return json.loads((self.folder / "fastdiff/_build.json").read_text())

    @property
    def library(self):
        return next(self.folder.glob("fastdiff/_C.*"), None)

    def touch(self, name):
        path = self.folder / name
        path.write_text(path.read_text() + "\n")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "tree")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tree = Tree(tmp_path_factory.mktemp("built") / "tree")
    tree.first = tree.build()
    return tree


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in lines.splitlines()]


# Decisions


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("", [80, 90, 100]),
        ("90", [90]),
        ("90;80", [80, 90]),
        ("8.0 9.0, 12.0", [80, 90, 120]),
        ("80;80;", [80]),
    ],
)
def test_architectures(build, text, archs):
    assert build.parse_archs(text, NVCC_ARCHS) == archs


def test_default_architectures_are_those_nvcc_knows(build):
    assert build.parse_archs("", [80, 90]) == [80, 90]
    with pytest.raises(build.Missing, match="knows none"):
        build.parse_archs("", [120])


@pytest.mark.parametrize("text", ["sm_90", "9", "90a", "all", "90;;x"])
def test_architectures_that_are_none(build, text):
    with pytest.raises(build.OptionError, match="FASTDIFF_CUDA_ARCHS must be compute capabilities"):
        build.parse_archs(text, NVCC_ARCHS)


def test_architecture_unknown_to_nvcc(build):
    with pytest.raises(build.OptionError, match=r"FASTDIFF_CUDA_ARCHS must be known to nvcc \(75, .*\), got 101"):
        build.parse_archs("90;101", NVCC_ARCHS)


@pytest.mark.parametrize(
    ("archs", "codes"),
    [
        ([80, 90], {80: "sm_80 sm_90 compute_80"}),
        ([90, 100, 120], {90: "sm_90 compute_90", 100: "sm_100 sm_120 compute_100"}),
        ([120], {120: "sm_120 compute_120"}),
    ],
)
def test_nvcc_lowers_once_for_architectures_of_the_same_ptx(build, archs, codes):
    flags = build.Nvcc("nvcc", "13.0", archs, "", "").flags
    expected = [f"arch=compute_{low},code={code}" for low, group in codes.items() for code in group.split()]
    assert [word for word in flags.split() if "arch=" in word] == expected


def test_no_source_tells_architectures_apart_that_share_ptx(build):
    """It may ask for what `LOWERED_ALIKE` parts, and whether it is for a GPU at all."""
    texts = [path.read_text() for path in (ROOT / "csrc").rglob("*.*")]
    known = rf"#ifdef __CUDA_ARCH__\n|defined\(__CUDA_ARCH__\)|__CUDA_ARCH__ >= {10 * build.LOWERED_ALIKE}\b"
    asked = [re.sub(known, "", text) for text in texts]
    assert asked != texts and not [text for text in asked if "__CUDA_ARCH__" in text]


@pytest.mark.parametrize("wish", ["yes", "2", "AUTO"])
def test_wish_for_cuda_that_is_none(build, wish):
    with pytest.raises(build.OptionError, match=f"FASTDIFF_CUDA must be auto, 1 or 0, got '{wish}'"):
        build.cuda_wish({"FASTDIFF_CUDA": wish})


def test_jobs(build):
    assert build.jobs({"MAX_JOBS": "3"}) == 3
    assert build.jobs({}) == len(os.sched_getaffinity(0))
    for text in ("0", "-1", "many"):
        with pytest.raises(build.OptionError, match=f"MAX_JOBS must be a positive integer, got '{text}'"):
            build.jobs({"MAX_JOBS": text})


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_cuda_home_wins_over_path(build, tmp_path):
    in_home = script(tmp_path / "home/bin/nvcc", "")
    on_path = script(tmp_path / "path/nvcc", "")
    env = {"PATH": str(on_path.parent)}
    assert build.find_nvcc(env) == str(on_path)
    assert build.find_nvcc({**env, "CUDA_HOME": str(tmp_path / "home")}) == str(in_home)
    with pytest.raises(build.Missing, match="no nvcc in CUDA_HOME/bin"):
        build.find_nvcc({**env, "CUDA_HOME": str(tmp_path)})


X86_LEVELS = ["avx512bf16", "avx512", "avx2", "baseline"]
COMPILERS = {
    "g++": ("__x86_64__ 1", "x86_64", X86_LEVELS, True),
    "g++ for aarch64": ("__aarch64__ 1", "aarch64", ["baseline"], True),
    "g++ for riscv": ("__riscv 1", "other", ["baseline"], True),
    "clang++": ("__x86_64__ 1\n#define __clang__ 1", "x86_64", X86_LEVELS, False),
}


@pytest.mark.parametrize(("macros", "machine", "levels", "openmp"), COMPILERS.values(), ids=COMPILERS)
def test_compiler_decides_levels_and_threads(build, tmp_path, macros, machine, levels, openmp):
    text = f'#define __VERSION__ "12.2.0 (Debian)"\n#define EMPTY\n#define {macros}'
    compiler = script(tmp_path / "cxx", f"cat <<'END'\n{text}\nEND")
    cxx = build.find_cxx({"CXX": str(compiler), "PATH": ""})
    assert (cxx.machine, cxx.levels, cxx.openmp) == (machine, levels, openmp)
    assert "12.2.0 (Debian)" in cxx.version
    assert ("-fopenmp" in cxx.flags) == openmp
    assert ("-DFD_X86" in cxx.flags) == (machine == "x86_64")


def test_cxx_may_have_arguments(build, tmp_path):
    compiler = script(tmp_path / "my cache", 'test "$1" = g++ && echo "#define __x86_64__ 1"')
    cxx = build.find_cxx({"CXX": f"'{compiler}' g++"})
    assert cxx.machine == "x86_64" and cxx.command == f"'{compiler}' g++"


def test_longest_source_is_compiled_first(build, tmp_path):
    write(tmp_path, {"csrc/cpu/a.cpp": "1", "csrc/cpu/b.cpp": "22", "csrc/cpu/c.cpp": "1"})
    cxx = build.Cxx(command="c++", version="", machine="x86_64", openmp=True)
    assert [path.stem for path in build.NinjaFile(tmp_path, cxx, None)._sources("cpu/*.cpp")] == ["b", "a", "c"]


def rules_of(build, folder, sources, machine="x86_64", version="GCC 12"):
    """{object: flags of its own} in the ninja file for these sources."""
    write(folder, {f"csrc/cpu/{name}.cpp": "" for name in sources})
    native = build.NinjaFile(folder, build.Cxx(command="c++", version=version, machine=machine, openmp=True), None)
    native.write()
    rules = (folder / native.path).read_text().replace("$\n", "")
    return dict(re.findall(r"build \S*?cpu/(\S+): .*\n  flags = (.*)", rules))


def test_the_oldest_processors_get_the_quickest_build(build, tmp_path):
    flags = rules_of(build, tmp_path, ["group_norm_silu"])
    quick = {name.partition("/")[0] for name, text in flags.items() if text.split()[-1] == "-O1"}
    assert "-O2" in build.CXX_FLAGS and quick == {"baseline"}
    assert "-O1" not in rules_of(build, tmp_path, ["group_norm_silu"], "aarch64")["baseline/group_norm_silu.o"]


def test_few_sources_have_their_own_optimisation(build, tmp_path):
    flags = rules_of(build, tmp_path, ["group_norm_silu", "q_sample"], "aarch64")
    assert [name for name, text in flags.items() if "-O3" in text.split()] == ["baseline/group_norm_silu.o"]
    assert {path.stem for path in (ROOT / "csrc").rglob("*.cpp")} >= set(build.OPTIMISED)


def test_intrinsics_are_read_once_a_level(build, tmp_path):
    """By GCC, for the levels of many sources."""
    flags = rules_of(build, tmp_path, ["q_sample", "normal"])
    including = {name for name, text in flags.items() if "-include" in text}
    assert including == {f"{level}/{name}.o" for level in ("avx512", "avx2") for name in ("q_sample", "normal")}
    headers = {name for name in flags if name.endswith(".gch")}
    assert headers == {f"{level}/intrinsics.h.gch" for level in ("avx512", "avx2")}
    clang = rules_of(build, tmp_path, ["q_sample"], version="Clang 14")
    assert not [text for text in clang.values() if "-include" in text]


def test_no_compiler(build):
    with pytest.raises(build.Missing, match=r"no C\+\+ compiler: CXX is not set, and PATH has no"):
        build.find_cxx({"PATH": ""})


def test_wrong_compiler_is_an_error(build):
    with pytest.raises(build.PlatformError, match=r"CXX must be a C\+\+ compiler, got '/no/such'"):
        build.find_cxx({"CXX": "/no/such", "PATH": ""})


# Builds of the stub tree


def at_levels(op, levels):
    """Objects; avx512bf16 has some ops alone."""
    return {f"cpu/{level}/{op}" for level in levels if level != "avx512bf16" or op == "group_norm_silu"}


@needs_build_tools
def test_first_build_makes_everything_once(built):
    levels = built.record["simd_levels"]
    once = {"bindings", "_C", "cpu/dispatch", "cpu/parallel"}
    headers = {path.removesuffix(".h.gch") for path in built.headers}
    assert built.first == {*once, *headers, *at_levels("op", levels), *at_levels("group_norm_silu", levels)}
    assert built.record["version"] == "0.1.0"
    assert built.record["reasons"]["cuda"] == "built with FASTDIFF_CUDA=0"


@needs_build_tools
def test_second_build_compiles_nothing(built):
    assert built.build() == set()
    assert built.says_no_work


@needs_build_tools
def test_another_path_of_pybind11_compiles_nothing(built, tmp_path):
    """pip makes a fresh environment, hence a fresh path, for every isolated build."""
    assert built.build(PYTHONPATH=str(fake_pybind11(tmp_path / "elsewhere"))) == set()


@needs_build_tools
def test_only_what_changed_is_compiled(tree):
    tree.build()
    levels = at_levels("op", tree.record["simd_levels"])
    tree.touch("csrc/cpu/parallel.cpp")
    assert tree.build() == {"cpu/parallel", "_C"}
    tree.touch("csrc/params.h")
    assert tree.build() == {*levels, "_C"}
    assert tree.build(PYTHONPATH=str(fake_pybind11(tree.folder.parent / "newer", "3.1.0"))) == {"bindings", "_C"}


@needs_build_tools
def test_only_the_module_is_exported(built):
    assert exported(built.library) == ["PyInit__C"]


@needs_build_tools
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_cuda_half(tree):
    assert {"cuda/op", "bindings"} <= tree.build(FASTDIFF_CUDA="1", FASTDIFF_CUDA_ARCHS="80")
    assert tree.record["cuda_archs"] == [80] and tree.record["nvcc"]
    log = (tree.folder / tree.objects / "cuda/op.o.log").read_text()
    assert re.search(r"Compiling entry function .* for 'sm_80'", log) and "spill stores" in log
    assert exported(tree.library) == ["PyInit__C"]
    assert tree.build(FASTDIFF_CUDA="1", FASTDIFF_CUDA_ARCHS="80", MAX_JOBS="9") == set()


@needs_build_tools
def test_cuda_asked_for_without_nvcc(tree):
    finished = tree.run("build_ext", "--inplace", FASTDIFF_CUDA="1", CUDA_HOME=str(tree.folder))
    assert finished.returncode != 0
    assert "error: FASTDIFF_CUDA=1 needs nvcc: no nvcc in CUDA_HOME/bin" in finished.stdout
    assert "Traceback" not in finished.stdout and not tree.library


@needs_build_tools
def test_cuda_not_found(tree):
    assert "cpu/dispatch" in tree.build(FASTDIFF_CUDA="auto", CUDA_HOME=str(tree.folder))
    assert tree.record["reasons"]["cuda"] == "no nvcc in CUDA_HOME/bin"
    assert tree.record["nvcc"] is None and tree.record["cuda_archs"] == []


BROKEN_NVCC = """
case "$*" in
  --version) echo "Cuda compilation tools, release 12.8, V12.8.93" ;;
  --list-gpu-arch) echo compute_80 ;;
  *--dryrun*) echo '#$ LIBRARIES=' >&2 ;;
  *) echo "unsupported GNU version! error: gcc is too new" >&2; exit 1 ;;
esac
"""


@needs_build_tools
def test_nvcc_that_fails(tree):
    script(tree.folder / "bin/nvcc", BROKEN_NVCC)
    finished = tree.run("build_ext", "--inplace", FASTDIFF_CUDA="1", CUDA_HOME=str(tree.folder))
    assert finished.returncode != 0 and "gcc is too new" in finished.stdout.splitlines()[-1]
    tree.build(FASTDIFF_CUDA="auto", CUDA_HOME=str(tree.folder))
    assert tree.library and tree.record["nvcc"] is None
    reason = tree.record["reasons"]["cuda"]
    assert reason == "the CUDA half failed to compile: unsupported GNU version! error: gcc is too new"


@needs_build_tools
def test_error_in_a_source_is_an_error(tree):
    write(tree.folder, {"csrc/cpu/parallel.cpp": "int parallel() { return nothing; }"})
    finished = tree.run("build_ext", "--inplace", FASTDIFF_CUDA="auto", CUDA_HOME=str(tree.folder))
    assert finished.returncode != 0 and "nothing" in finished.stdout.splitlines()[-1]


@needs_build_tools
def test_without_a_compiler_pure_python_is_left(tree, tmp_path):
    stale = tree.folder / "fastdiff" / f"_C{native_suffix()}"
    stale.touch()
    finished = tree.run("build_ext", "--inplace", PATH=str(tmp_path))
    assert finished.returncode == 0
    assert finished.stdout.count("fastdiff is installed without its C++ kernels: no C++ compiler") == 1
    assert not stale.exists()
    assert tree.record["compiler"] is None
    assert "no C++ compiler" in tree.record["reasons"]["cpu"] and "no C++ compiler" in tree.record["reasons"]["cuda"]


def native_suffix():
    return next(
        suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES if sys.implementation.cache_tag[-3:] in suffix
    )


def wheel_names(folder):
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return {name.partition("/")[2] for name in wheel.namelist() if name.startswith("fastdiff/")}


@needs_build_tools
def test_wheel_holds_the_module_and_the_record(tree, tmp_path):
    assert tree.run("bdist_wheel", "--dist-dir", str(tmp_path / "dist")).returncode == 0
    names = wheel_names(tmp_path / "dist")
    assert names == {"__init__.py", "_build.json", f"_C{native_suffix()}"}


@needs_build_tools
def test_wheel_without_a_compiler(tree, tmp_path):
    finished = tree.run("bdist_wheel", "--dist-dir", str(tmp_path / "dist"), PATH=str(tmp_path))
    assert finished.returncode == 0, finished.stdout
    assert wheel_names(tmp_path / "dist") == {"__init__.py", "_build.json"}


@needs_build_tools
def test_sdist_carries_the_sources_and_builds(tree, tmp_path):
    tree.build()
    assert tree.run("sdist", "--dist-dir", str(tmp_path)).returncode == 0
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked")
    assert {name for name in STUBS if name.startswith("csrc/")} | {"setup.py", "LICENSE", "pyproject.toml"} <= names
    assert not [name for name in names if "_build.json" in name or name.endswith((".so", ".o"))]
    tree.folder = next((tmp_path / "unpacked").iterdir())
    assert "cpu/dispatch" in tree.build()


# The build that is installed


@needs_native
def test_record_is_of_this_version():
    record = build_info.read()
    assert record["version"] == fastdiff.__version__
    assert native.simd_level() in record["simd_levels"]


@needs_native
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_installed_module_exports_nothing_else():
    from fastdiff import _C

    assert exported(_C.__file__) == ["PyInit__C"]


@needs_native
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_levels_share_no_symbol():
    """The linker would merge a weak symbol, and run one level's instructions in another's place."""
    levels = [path for level in X86_LEVELS for path in ROOT.glob(f"build/native-*/cpu/{level}/*.o")]
    if not levels:
        pytest.skip("the module was not built in this tree")
    for path in levels:
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in lines.splitlines() if line.split()[1] in "WVu" and " DW.ref." not in line]  # data
        assert not [line for line in weak if f"fastdiff::{path.parent.name}::" not in line], path


ONE_OPENMP = """
import torch, fastdiff
from fastdiff import ops
torch.set_num_threads(2)
with fastdiff.use_backend("cpu"):
    ops.normal((4, 3, 64, 64), ops.rng.make_rng(0), torch.arange(4))
torch.rand(1 << 20).sum()
print(len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1].rpartition("/")[2]}))
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_in_the_process():
    """Ours is the one that torch brought."""
    output = subprocess.run([sys.executable, "-c", ONE_OPENMP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout == "1\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs Debian's g++-aarch64-linux-gnu")
@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cpu/*.cpp")), ids=lambda path: path.stem)
def test_compiles_for_aarch64_without_a_warning(build, source):
    flags = [*build.CXX_FLAGS.split(), "-Werror", "-DFD_LEVEL=baseline", "-fsyntax-only"]
    finished = subprocess.run(["aarch64-linux-gnu-g++", *flags, source], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
