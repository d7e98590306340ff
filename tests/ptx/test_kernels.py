"""The PTX of every CUDA and Triton kernel on ptxsim: values, races, bounds, uninitialised reads, instructions."""

import re

import pytest

from . import cuda_kernels, kept, simulator, triton_kernels
from .cases_losses import CASES
from .plants import PLANTS

if simulator.unavailable():
    pytest.skip(simulator.unavailable(), allow_module_level=True)

LANGUAGES = {"cuda": cuda_kernels, "triton": triton_kernels}
PLANTED = {name: language for name, (language, *_) in PLANTS.items()}
# Of each op a fast path, and what else reaches each kernel; the other cases are slow.
QUICK = {
    "normal f32 last", "q_sample of u8 drawn bf16 first", "q_sample of u8 training f32 last",
    "reverse_step drawn bf16 first", "reverse_step learned f32 last", "group_norm_silu bf16 first",
    "group_norm_silu dropout bf16 last", "group_norm_silu one group f32 first",
    "group_norm_silu_backward film bf16 first", "group_norm_silu_backward dropout bf16 last",
    "group_norm_silu_backward large f32 first", "group_norm_silu_backward empty f32 first",
    "group_norm_silu_backward few f32 first",
    "rms_norm_silu film bf16 first", "rms_norm_silu_backward film bf16 last", "rms_norm_silu_backward empty f32 first",
    "diffusion_loss large bf16 first", "diffusion_loss_backward learned bf16 last", "vlb_terms large bf16 first",
    "vlb_terms decoder f32 last", "vlb_terms_backward large bf16 first",
}  # fmt: skip


def each(languages, cases):
    """A parameter for each row, slow where it is not of the quick ones."""
    return [
        pytest.param(f"{language} {case}", marks=() if case in QUICK else pytest.mark.slow)
        for language in languages
        for case in cases
    ]


def skip_without(language):
    if LANGUAGES[language].unavailable():
        pytest.skip(LANGUAGES[language].unavailable())


@pytest.fixture
def result(request, row):
    first = row.partition(" ")[0]
    skip_without({"inductor": "triton", **PLANTED}.get(first, first))
    return request.getfixturevalue("results")[row]


EVERY = pytest.mark.parametrize("row", each(LANGUAGES, CASES))


@EVERY
def test_values(row, result):
    assert not result["wrong"]


@EVERY
def test_nothing_is_found(row, result):
    assert not result["findings"]


@pytest.mark.parametrize("row", each(LANGUAGES, kept.counted()))
def test_instructions(row, result):
    """Not more than are kept, and few beside inductor's. `python -m tests.ptx.run --update` keeps those of now."""
    counts, language = kept.read(), row.partition(" ")[0]
    assert result["count"], result["wrong"]
    if kept.toolchain()[language] == counts["toolchain"][language]:
        assert result["count"] <= kept.SLACK * counts["rows"][row]
    share = kept.share(row, {**counts["rows"], row: result["count"]})
    assert share <= kept.allowed(row)


@pytest.mark.parametrize("row", [pytest.param(f"inductor {case}", marks=pytest.mark.slow) for case in kept.counted()])
def test_instructions_of_inductor(row, result):
    counts = kept.read()
    if kept.toolchain()["inductor"] != counts["toolchain"]["inductor"]:
        pytest.skip(f"counted with another torch: {counts['toolchain']['inductor']}")
    assert not result["wrong"]
    assert result["count"] == pytest.approx(counts["rows"][row], rel=0.02)


@pytest.mark.parametrize("row", PLANTS)
def test_planted_bugs_are_found(row, result):
    assert re.search(PLANTS[row][-1], "\n".join([result["wrong"] or "", *result["findings"]]))


def every_row_of(cases):
    rows = [(language, [f"{language} {case}" for case in cases]) for language in LANGUAGES]
    return pytest.mark.parametrize(("language", "rows"), rows, ids=LANGUAGES)


def kernels_of(request, rows):
    results = request.getfixturevalue("results")
    return {kernel for row in rows for kernel in results[row]["kernels"]}


@every_row_of(sorted(QUICK))
def test_the_quick_rows_reach_every_kernel(language, rows, request):
    skip_without(language)
    every = {kernel.partition("<")[0] for kernel in LANGUAGES[language].kernels()}
    assert {kernel.partition("<")[0] for kernel in kernels_of(request, rows)} == every


@pytest.mark.slow
@every_row_of(CASES)
def test_the_rows_reach_every_instance(language, rows, request):
    skip_without(language)
    assert kernels_of(request, rows) == LANGUAGES[language].kernels()
