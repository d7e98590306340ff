"""Budgets of every GPU kernel's binary: the kept table is what the compilers say, and within them."""

import importlib
import pkgutil
from dataclasses import replace

import pytest

from benchmarks import static
from benchmarks.static import ARCHS, Table, collect, cuda, ptx, worsened
from benchmarks.static.cases import CASES

KEPT = Table.read(static.KEPT)
# What a kernel reads or writes one element after the other; other kernels handle sums alone.
STREAMS = {
    "normal_kernel": ("store",),
    "q_sample_kernel": ("load", "store"),
    "reverse_step_kernel": ("load", "store"),
    "group_norm_silu_kernel": ("load", "store"),
    "group_norm_silu_backward_kernel": ("load", "store"),
    "group_norm_silu/epilogue_kernel": ("load", "store"),
    "group_norm_silu_backward/dropout_kernel": ("load", "store"),
    "rms_norm_silu_kernel": ("load", "store"),
    "rms_norm_silu_backward_kernel": ("load", "store"),
    "whole_groups_kernel": ("load", "store"),
    "chunk_statistics_kernel": ("load",),
    "apply_kernel": ("load", "store"),
    "whole_groups_backward_kernel": ("load", "store"),
    "chunk_sums_kernel": ("load",),
    "apply_gradient_kernel": ("load", "store"),
    "diffusion_loss_kernel": ("load",),
    "diffusion_loss_backward_kernel": ("load", "store"),
    "vlb_terms_kernel": ("load",),
    "vlb_terms_backward_kernel": ("load", "store"),
}
BELOW = {  # (language, kernel, dtype, layout) that are not there yet
    ("triton", "normal_kernel", "f32", "last"): "three channels are no vector",
    ("triton", "normal_kernel", "bf16", "last"): "three channels are no vector",
    ("triton", "q_sample_kernel", "f32", "last"): "three channels are no vector",
    ("triton", "q_sample_kernel", "bf16", "last"): "three channels are no vector",
    ("triton", "whole_groups_kernel", "bf16", "last"): "a group's four channels are eight bytes",
    ("triton", "whole_groups_backward_kernel", "bf16", "last"): "a group's four channels are eight bytes",
    ("triton", "apply_gradient_kernel", "bf16", "last"): "a group's four channels are eight bytes",
    ("triton", "chunk_sums_kernel", "bf16", "last"): "a group's four channels are eight bytes",
}
LOSSES = "diffusion_loss", "vlb_terms"
BELOW |= {
    ("cuda", "vlb_terms_backward_kernel", dtype, layout): "a thread takes four elements"
    for dtype, layout in (("bf16", "first"), ("f16", "first"), ("bf16", "last"))  # whose kernel is f16's as well
}  # fmt: skip
BELOW |= {
    ("triton", f"{op}{of}_kernel", dtype, "last"): "three channels are no vector"
    for op in LOSSES for of in ("", "_backward") for dtype in ("f32", "bf16")
}  # fmt: skip
QUICK = ("normal f32 first", "q_sample f32 first of u8", "reverse_step f32 first", "group_norm_silu f32 first",
         "group_norm_silu f32 first large", "group_norm_silu_backward f32 first")  # fmt: skip


def is_fast(row):
    """Whether whole vectors are promised."""
    return row["case"] is not None and not CASES[row["case"]].variant.startswith("odd")


def kernel_of(row):
    return row["kernel"].partition("<")[0]


def widths(row):
    """Of what must be 16 bytes; eight bytes of uint8 are as many elements as a thread writes."""
    of_bytes = " of u8" in row["case"]
    return [row[access] for access in STREAMS.get(kernel_of(row), ()) if not (of_bytes and access == "load")]


def test_no_spills_no_local_memory_no_slow_trigonometry():
    assert not [row for row in KEPT.rows if row["spill"] or row["stack"] or row["trig"]]


@pytest.mark.parametrize("language", ["cuda", "triton"])
def test_fast_paths_access_16_bytes(language):
    fast = [row for row in KEPT.rows if row["language"] == language and is_fast(row)]
    narrow = set()
    for row in fast:
        if any(width < 16 for width in widths(row)):
            narrow.add((language, kernel_of(row), *row["case"].split()[1:3]))
    assert narrow == {each for each in BELOW if each[0] == language}
    assert {row["case"].split()[0] for row in fast} == {case.op for case in CASES.values()}


def test_kept_table_covers_every_architecture_and_language():
    assert {(row["language"], row["arch"]) for row in KEPT.rows} == {
        (language, arch) for language in ("cuda", "triton") for arch in ARCHS
    }


def kernels_of_triton():
    backend = importlib.import_module("fastdiff.ops.triton")
    for found in pkgutil.iter_modules(backend.__path__):
        module = importlib.import_module(f"{backend.__name__}.{found.name}")
        yield from (value for name, value in vars(module).items() if name.endswith("_kernel"))


def test_every_triton_kernel_has_rows():
    pytest.importorskip("triton")
    names = {kernel.__name__ for kernel in kernels_of_triton()}
    assert names == {row["kernel"] for row in KEPT.rows if row["language"] == "triton"}


def test_no_argument_is_an_option_of_tritons_launch():
    """Triton refuses a launch with such a keyword; its interpreter does not."""
    pytest.importorskip("triton")
    taken = {"stream", "device", "device_type"}
    assert not [kernel.__name__ for kernel in kernels_of_triton() if taken & set(kernel.arg_names)]


def op_of(row):
    """The file that a CUDA kernel is in."""
    return row["kernel"].partition("/" if "/" in row["kernel"] else "_kernel")[0]


def assert_kept(languages, archs, rows, cases=None):
    found, reasons = collect(languages, archs, cases)
    if reasons:
        pytest.skip("; ".join(reasons.values()))
    assert worsened(replace(KEPT, rows=rows), found) == []


@pytest.mark.parametrize("case", QUICK[:4], ids=lambda case: CASES[case].op)
def test_cuda_kernels_of_sm_90_are_as_kept(case):
    rows = [row for row in KEPT.rows if row["language"] == "cuda" and op_of(row) == CASES[case].op]
    assert rows
    assert_kept(["cuda"], [90], rows, [case])


def test_triton_kernels_of_sm_90_are_as_kept():
    rows = [row for row in KEPT.rows if row["language"] == "triton" and row["case"] in QUICK]
    assert_kept(["triton"], [90], rows, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["cuda", "triton"])
def test_all_kernels_are_as_kept(language):
    assert_kept([language], ARCHS, [row for row in KEPT.rows if row["language"] == language])


PLANTED = """
extern "C" __global__ void planted(const float* x, float* y, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = sinf(x[i]);
  y[threadIdx.x] = kept[n];
}
"""


def test_planted_kernel_is_seen(tmp_path):
    """Local memory, slow-path trigonometry, narrow accesses."""
    if cuda.unavailable():
        pytest.skip(cuda.unavailable())
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    row = ptx.measured(ptx.facts(*cuda.compiled(source, 90), 90)["planted"], 90, 0, 256)
    assert row["stack"] >= 256 and row["trig"] and (row["load"], row["store"]) == (4, 4)
