"""The kept counts have every case, and no kernel executes more than it may beside inductor's."""

from . import kept

COUNTS = kept.read()["rows"]


def test_every_row_is_counted():
    assert list(COUNTS) == kept.names()


def test_none_executes_too_many():
    assert not kept.too_many(COUNTS)
