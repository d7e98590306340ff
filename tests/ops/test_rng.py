"""The counter RNG's definition, and its inputs."""

import numpy as np
import pytest
import torch

from fastdiff.ops import reference, rng

# Random123's kat_vectors for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter, key, words):
    scalars = [torch.tensor(value) for value in (*counter, *key)]
    assert [int(word) for word in reference.philox(scalars[:4], scalars[4:])] == words


def test_words_are_those_of_the_counter_that_the_design_names():
    seed, draw, stream, ids = -3, 2**32 - 1, 7, torch.tensor([5, 2**32 - 1])
    words = reference.words(10, rng.make_rng(seed, draw), ids, stream)
    key = [torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32 & 0xFFFFFFFF)]
    for b, sample in enumerate(ids):
        for block in range(3):
            counter = [torch.tensor(block), sample, torch.tensor(draw), torch.tensor(stream)]
            assert torch.equal(words[:, b, block], torch.stack(reference.philox(counter, key)))


def test_box_muller_is_exact_where_plain_cosines_are_not():
    quarter = torch.tensor([0, 1 << 30, 2 << 30, 3 << 30])
    cos, sin = reference.box_muller(torch.zeros(4, dtype=torch.int64), quarter)
    radius = (2 * 33 * torch.tensor(2.0).double().log()).sqrt()  # u = 2^-33
    expected = torch.tensor([1, 0, -1, 0], dtype=torch.float64) * radius
    assert torch.allclose(cos, expected, rtol=1e-15, atol=0)
    assert torch.allclose(sin, expected.roll(1), rtol=1e-15, atol=0)


def test_seeds_wrap_to_64_bits():
    assert rng.make_rng(2**64 - 1).tolist() == [-1, 0]
    assert rng.make_rng(-(2**63), 2**32 - 1).tolist() == [-(2**63), 2**32 - 1]
    assert rng.make_rng(2**63).tolist() == rng.make_rng(-(2**63)).tolist()


@pytest.mark.parametrize(("seed", "draw", "message"), [
    (2**64, 0, "seed must be in"), (-(2**63) - 1, 0, "seed must be in"),
    (0, -1, "draw must be in"), (0, 2**32, "draw must be in"),
])  # fmt: skip
def test_seeds_and_draws_out_of_range_are_refused(seed, draw, message):
    with pytest.raises(ValueError, match=message):
        rng.make_rng(seed, draw)


def test_seeds_of_numpy_and_in_tensors_are_ints_and_fractions_are_refused():
    assert rng.make_rng(np.uint64(2**64 - 1), np.int64(3)).tolist() == [-1, 3]
    assert rng.make_rng(torch.tensor(5), torch.tensor(3)).tolist() == [5, 3]
    for seed, draw, name in ((1.5, 0, "seed"), ("3", 0, "seed"), (None, 0, "seed"), (0, 0.5, "draw")):
        with pytest.raises(TypeError, match=f"{name} must be an int, got"):
            rng.make_rng(seed, draw)
