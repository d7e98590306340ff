"""The plain definitions, whose kernels ours are compared with, compute what the ops do, given the ops' noise."""

from unittest import mock

import pytest

from fastdiff.ops import reference, rng

from . import kept, plain
from .cases_losses import CASES


@pytest.fixture
def own_noise(case):
    """torch.randn_like and torch.rand_like give the op's draws, one after the other."""
    given = case.arguments()
    streams = iter([given.get("stream", rng.STEP), rng.KNOWN])

    def draw(like, dtype=None):
        return reference.draw(like.shape, given["rng"], given["sample_ids"], next(streams)).to(dtype or like.dtype)

    def keep(like):
        names = "rng", "sample_ids", "threshold", "stream"
        return reference.kept(like.shape, *(given[name] for name in names)).float()

    with mock.patch("torch.randn_like", draw), mock.patch("torch.rand_like", keep):
        yield


@pytest.mark.parametrize("case", [CASES[name] for name in kept.counted()], ids=kept.counted())
def test_plain_is_the_op(case, own_noise):
    arguments = {name: value for name, value in case.arguments().items() if value is not None}
    found = getattr(plain, case.op)(case, **arguments)
    definition = case.arguments()
    getattr(reference, case.op)(*definition.values())
    expected = {name: value for name, value in case.outputs(definition).items() if name not in ("mean", "rstd")}
    expected |= {"history": expected["history"][1]} if "history" in expected else {}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value.double()
        assert (found[name].double() - value).abs().max() <= 0.02 * value.abs().max(), name
