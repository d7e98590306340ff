"""The models' tests run on one thread."""

import pytest


@pytest.fixture(autouse=True)
def _alone(one_thread):
    pass
