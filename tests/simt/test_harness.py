"""The harness itself: what it computes, and that it finds each planted bug."""

import re

import pytest
import torch

from tests.ops.accuracy import same_bits
from tests.simt import harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

SEEDS = range(4)


def run(kernel, n=64, grid=1, block=64, shared=0, x=None):
    """What a planted kernel leaves in out [n], which is NaN before."""
    x = torch.arange(float(n)) if x is None else x
    out = torch.full((n,), torch.nan)
    with harness.registered([("out", out, True), ("in", x, False)]):
        error = harness.load()["planted"].run(kernel, out.data_ptr(), x.data_ptr(), n, grid, block, shared)
    assert error == 0
    return out


def finding(kernel, **launch):
    with pytest.raises(RuntimeError) as error:
        run(kernel, **launch)
    return str(error.value)


@pytest.fixture(params=SEEDS)
def seed(request):
    with harness.seed(request.param):
        yield request.param


# ---- What it computes ----


@pytest.mark.parametrize(("n", "grid", "block"), [(64, 1, 64), (100, 1, 128), (1000, 9, 113), (1024, 1, 1024)])
def test_every_thread_of_every_block_runs_once(seed, n, grid, block):
    assert torch.equal(run("copy", n, grid, block), torch.arange(float(n)))


@pytest.mark.parametrize("block", [1, 32, 100, 1024])
def test_barriers(seed, block):
    out = run("reverse", 2 * block, 2, block, shared=4 * block)
    assert torch.equal(out, torch.arange(2.0 * block).view(2, block).flip(1).flatten())


def test_a_synchronised_warp(seed):
    assert torch.equal(run("neighbour", 32, 1, 32), torch.arange(32.0).view(16, 2).flip(1).flatten())


def test_shuffles_and_votes(seed):
    lane = torch.arange(32)
    up, down = torch.where(lane < 2, lane, lane - 2), torch.where(lane % 8 > 5, lane, lane + 2)
    assert torch.equal(run("shuffles"), (5 + 100.0 * up + 1e4 * down).repeat(2))


def test_sums_over_a_block_one_after_the_other_are_the_same_bits_in_any_order():
    x = torch.randn(512, generator=torch.Generator().manual_seed(0))
    sums = []
    for seed in SEEDS:
        with harness.seed(seed):
            sums.append(run("sums", 512, 2, 256, x=x))
    assert torch.allclose(sums[0].view(2, 256), 2 * x.view(2, 256).sum(1, keepdim=True), atol=1e-4)
    assert all(same_bits(each, sums[0]) for each in sums)


@pytest.mark.parametrize("launch", [dict(block=1025), dict(block=0), dict(grid=0)], ids=str)
def test_impossible_launches_are_errors_of_cuda(launch):
    with pytest.raises(AssertionError, match="9"):
        run("copy", **launch)


def test_shared_memory_beyond_what_a_block_can_have():
    run("reverse", shared=227 << 10)
    with pytest.raises(AssertionError, match="1 == 0"):
        run("reverse", shared=(227 << 10) + 1)


# ---- What it finds ----

FOUND = {
    "copy_one_too_many": (
        dict(n=40),
        r"out of bounds: a read of 4 bytes at 0x\w+, 0 bytes from the end of \w+ "
        r"\(kernel copy_one_too_many, block \(0, 0, 0\), thread \(40, 0, 0\)\)",
    ),
    "copy_unaligned_vectors": ({}, r"misaligned: a read of 16 bytes at 0x\w+ in in .*thread \(\d+, 0, 0\)"),
    "write_the_input": ({}, "read-only: a write of 4 bytes at .* in in "),
    "shared_one_too_far": ({}, r"out of bounds: a write of 4 bytes at byte 256 of the 256 of shared array tile "),
    "shared_never_written": ({}, r"uninitialised: byte 160 of shared array tile is read .*thread \(40, 0, 0\)"),
    "reverse_without_barrier": (dict(shared=256), r"race: a |uninitialised: byte \d+ of shared array tile"),
    "write_again_without_barrier": ({}, "race: a (read|write) of byte 0 of shared array tile with .* thread number"),
    "neighbour_without_sync": (dict(block=32), "race: a |uninitialised: "),
    "end_before_barrier": (dict(n=40), r"thread \(\d+, 0, 0\) waits at a barrier, thread \(\d+, 0, 0\) has ended"),
    "shuffle_of_half_a_warp": ({}, "waits in a shuffle for lanes of mask 0xffffffff that never come"),
    "shuffle_from_outside_the_mask": ({}, "lane 8 shuffles from lane 16, which mask 0x0000ffff lacks"),
    "vote_against_shuffle": ({}, r"lane \d+ is in (a shuffle|a vote) with mask 0xffffffff, this lane in "),
}


@pytest.mark.parametrize("kernel", FOUND)
def test_planted_bugs_are_found_whatever_the_order(seed, kernel):
    launch, message = FOUND[kernel]
    found = finding(kernel, **launch)
    assert re.search(message, found)
    assert f"(kernel {kernel}, block (0, 0, 0)" in found


def test_a_race_is_seen_from_the_later_thread_whichever_that_is():
    found = set()
    for seed in range(8):
        with harness.seed(seed):
            found.add(finding("write_again_without_barrier").partition(" of byte")[0])
    assert found == {"race: a read", "race: a write"}


def test_what_depends_on_the_order_of_warps_differs_between_seeds():
    last = set()
    for seed in range(8):
        with harness.seed(seed):
            last.add(float(run("last_writer_wins", block=256)[0]))
    assert len(last) > 2


def test_memory_that_is_not_registered():
    x = torch.zeros(64)
    with pytest.raises(RuntimeError, match=r"out of bounds: a read .* no memory is registered"):
        harness.load()["planted"].run("copy", x.data_ptr(), x.data_ptr(), 64, 1, 64, 0)


def test_a_finding_leaves_the_harness_usable():
    finding("end_before_barrier", n=40)
    assert torch.equal(run("copy"), torch.arange(64.0))


def test_rows_of_a_strided_tensor_are_registered_and_not_what_lies_between():
    wide = torch.zeros(3, 8)
    assert harness.spans(wide[:, :4]) == [(wide[row].data_ptr(), 16) for row in range(3)]
    assert harness.spans(wide.t()) == [(wide.data_ptr(), 96)]
    assert harness.spans(wide[0].expand(3, 8)) == [(wide.data_ptr(), 32)] * 3
    assert harness.spans(wide[:0]) == []


# ---- What it counts ----


def counts(kernel, **launch):
    with harness.counted() as launches:
        run(kernel, **launch)
    (only,) = launches
    assert only["kernel"] == kernel
    return only


def test_counts_of_a_copy():
    found = counts("copy", n=1000, grid=8, block=128)
    assert found["grid"] == (8, 1, 1) and found["block"] == (128, 1, 1)
    read, written = found["tensors"]["in"], found["tensors"]["out"]
    assert read["bytes"] == read["read"] == written["written"] == 4000 and read["written"] == written["read"] == 0
    assert read["read_minimal_sectors"] == written["written_minimal_sectors"] == 31 * 4 + 1


def test_counts_of_strided_accesses():
    found = counts("copy_every_fourth", n=1024, grid=2, block=128)["tensors"]["in"]
    assert found["read"] == 1024
    assert found["read_minimal_sectors"] == 32 and found["read_sectors"] == 128


def test_counts_do_not_depend_on_the_order(seed):
    assert counts("copy", n=500, grid=4, block=128) == counts("copy", n=500, grid=4, block=128)
    with harness.seed(0):
        expected = counts("copy", n=500, grid=4, block=128)
    assert counts("copy", n=500, grid=4, block=128) == expected
