"""The kept counts have every case, and list what executes more than it may beside inductor's kernels."""

from . import kept
from .more import MORE

COUNTS = kept.read()["rows"]


def test_every_row_is_counted():
    assert list(COUNTS) == kept.names()


def test_what_executes_more_is_listed():
    """`python -m tests.ptx.run --update` prints the list."""
    assert kept.too_many(COUNTS) == MORE
