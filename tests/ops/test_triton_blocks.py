"""The table of Triton's block sizes: within limits, without spills, in the user's cache once it is tuned."""

import json
import re
import warnings

import pytest
import torch

import fastdiff
from benchmarks import static
from benchmarks.static.cases import CASES, maker
from fastdiff import ops

blocks = pytest.importorskip("fastdiff.ops.triton.blocks")
KEPT = static.Table.read(static.KEPT)
MANY = next(each for each in blocks.BUILT_IN if each.kind == "image")


def test_the_built_in_table_is_within_its_limits():
    blocks.check(blocks.BUILT_IN)
    assert {each.kind for each in blocks.BUILT_IN} == set(blocks.BLOCKS)


@pytest.mark.parametrize("kind", blocks.BLOCKS)
def test_each_row_is_compiled_and_does_not_spill(kind, monkeypatch):
    """Each row is of some case whose kernels are in the kept table."""
    used, row = set(), blocks.row
    monkeypatch.setattr(blocks, "row", lambda *arguments: used.add(row(*arguments)) or row(*arguments))
    monkeypatch.setattr("triton.runtime.jit.KernelInterface.__getitem__", lambda *_: lambda *_, **__: None)
    for case in {each["case"] for each in KEPT.rows if each["language"] == "triton"}:
        getattr(pytest.importorskip("fastdiff.ops.triton"), CASES[case].op)(*CASES[case].arguments(maker("meta")))
    assert {each for each in used if each.kind == kind} == {each for each in blocks.BUILT_IN if each.kind == kind}
    assert not any(each["spill"] for each in KEPT.rows)


WRONG = {
    "block of image must be a power of two in [256, 4096], got 1000": dict(block=1000),
    "block of image must be a power of two in [256, 4096], got 8192": dict(block=8192),
    "block of image must be a power of two in [256, 4096], got 0": dict(block=blocks.WHOLE),
    "per_warp of image must be a power of two in [128, 512], got 96": dict(per_warp=96),
    "per_warp of image must be a power of two in [128, 512], got 1024": dict(per_warp=1024),
    "kind must be one of image, group_norm_silu, ": dict(kind="picture"),
    "most, block and per_warp must be integers, got (": dict(block=1024.0),
    "rows of image must be for more and more elements, ": dict(most=blocks.ANY),
}


@pytest.mark.parametrize(("message", "change"), WRONG.items())
def test_wrong_rows_are_refused(message, change):
    with pytest.raises(ValueError, match=re.escape(message)):
        blocks.check((MANY._replace(**change), *blocks.BUILT_IN[1:]))


def test_a_kind_without_a_last_row_is_refused():
    with pytest.raises(ValueError, match=r"rows of rms_norm_silu_backward .* the last for any, got \[\]"):
        blocks.check(blocks.BUILT_IN[:-1])


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDIFF_HOME", str(tmp_path))
    return tmp_path


def test_the_place_is_as_torchs(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTDIFF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert blocks.path("NVIDIA H100 80GB HBM3") == tmp_path / "fastdiff" / "blocks-nvidia-h100-80gb-hbm3.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert blocks.path("A").parent == tmp_path / ".cache" / "fastdiff"


def test_a_written_table_is_read(home):
    table = (MANY._replace(block=2048), *blocks.BUILT_IN[1:])
    assert blocks.read("A card") == blocks.BUILT_IN
    blocks.path("A card").write_text(blocks.to_json("A card", table))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blocks.read("A card") == table


@pytest.mark.parametrize("text", [
    "", "[1, 2]", "{}", '{"rows": 7}', '{"rows": [["image", 1]]}',
    json.dumps({"rows": [["image", blocks.ANY, 1 << 20, 256], *map(list, blocks.BUILT_IN[2:])]}),
])  # fmt: skip
def test_a_corrupt_file_is_told_of_and_left_aside(home, text):
    blocks.path("A card").write_text(text)
    with pytest.warns(UserWarning, match="is no table of block sizes .*the built-in one is used"):
        assert blocks.read("A card") == blocks.BUILT_IN


def test_gpus_read_their_file_once_and_other_devices_none(monkeypatch):
    names, read = [], []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names.append(index) or "A card")
    monkeypatch.setattr(blocks, "read", lambda gpu: read.append(gpu) or blocks.BUILT_IN)
    blocks._of_gpu.cache_clear()
    tensor = type("OnGpu", (), {"is_cuda": True, "device": torch.device("cuda", 1)})
    assert blocks.row("image", 5, tensor) is blocks.row("image", 6, tensor) is MANY
    assert blocks.row("image", 5, torch.zeros(1)) is MANY
    assert (names, read) == ([1], ["A card"])
    blocks._of_gpu.cache_clear()


def test_kernels_follow_the_table():
    """Another table, the same numbers up to the order of sums."""
    table = [each._replace(per_warp=128, block=each.block and blocks.BLOCKS[each.kind][0]) for each in blocks.BUILT_IN]
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for each in (blocks.BUILT_IN, table):
        with blocks.using(each), fastdiff.use_backend("triton"):
            y = ops.group_norm_silu(x, 1)
            noise = ops.normal((2, 3, 32, 32), ops.rng.make_rng(1), torch.arange(2))
            results.append((y, *torch.autograd.grad(y.square().sum(), x), ops.rms_norm_silu(x), noise))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][-1], results[1][-1])


def test_candidates_are_the_row_first_and_within_the_limits():
    found = blocks.candidates(MANY)
    assert found[0] == MANY and len(found) == len(set(found)) == 9
    assert {each.block for each in found} == {512, 1024, 2048} and {each.per_warp for each in found} == {128, 256, 512}
    whole = next(each for each in blocks.BUILT_IN if each.block == blocks.WHOLE)
    assert {(each.block, each.per_warp) for each in blocks.candidates(whole)} == {(0, 1024), (0, 512)}


def test_tuning_keeps_what_is_faster_by_the_margin():
    def time(row):
        now = next(each for each in blocks.rows(None) if (each.kind, each.most) == (row.kind, row.most))
        if row == MANY:
            return 1.0 if now == MANY._replace(block=2048, per_warp=128) else 2.0
        return 1.0 if now == row else 0.99

    table = blocks.tuned(time)
    assert table == (MANY._replace(block=2048, per_warp=128), *blocks.BUILT_IN[1:])
    assert blocks.rows(torch.zeros(1)) is blocks.BUILT_IN


@pytest.mark.parametrize(("kind", "rounds", "tiles"), [("rms_norm_silu", 4, 2), ("rms_norm_silu_backward", 2, 4)])
def test_tiles_of_pixels_that_all_exist_are_several_a_program(kind, rounds, tiles):
    from fastdiff.ops.triton.rms_norm_silu import plan_pages

    pages = plan_pages(torch.empty(1, 128, 16, 16), True, 8192, kind, rounds)
    assert (pages.SPAN, pages.ROUNDS, pages.tiles, pages.num_warps) == (16, 2 * rounds, tiles, 4)
    short = plan_pages(torch.empty(1, 128, 15, 16), True, 8192, kind, rounds)
    assert (short.SPAN, short.ROUNDS, short.tiles) == (32, 1, 8)


@pytest.mark.parametrize(("terms", "shape", "programs"), [
    ({}, (1, 128, 32, 32), 8), ({"scale": True}, (1, 128, 32, 32), 32), ({}, (1, 128, 32, 31), 32)])  # fmt: skip
def test_large_tiles_of_whole_groups_are_for_what_does_not_spill(terms, shape, programs):
    from fastdiff.ops.triton.group_norm_silu_backward import _plan

    plan = _plan(torch.empty(shape, dtype=torch.bfloat16), 32, True, bool(terms), False)
    assert plan.group_tiles * plan.chunks == programs
