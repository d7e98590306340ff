"""What an experiment says: standard errors, verdicts, the table."""

import math

import pytest

from benchmarks.experiments import report


def test_verdicts():
    """Reproduced where the difference exceeds twice the root of the two squared standard errors, and only then."""
    less, more = [1.0, 1.2, 1.4], [2.0, 2.0, 2.3]
    found = report.verdict(less, more)
    assert found["difference"] == pytest.approx(0.9)
    assert found["standard_error"] == pytest.approx(math.sqrt(0.04 / 3 + 0.03 / 3))
    assert found["verdict"] == "reproduced"
    assert report.verdict(more, less)["verdict"] == "not reproduced"
    assert report.verdict([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])["verdict"] == "not reproduced"  # 1 against 2 * 0.816
    assert report.verdict([1.0], [9.0])["verdict"] == "not reproduced"  # one seed has no error to tell


def test_the_table():
    bits = {"a": [1.0, 1.2], "b": [2.0, 2.0]}
    quality = {("a", "ddpm", 10): [5.0, 7.0], ("a", "ddpm", 25): [4.0, 4.0]}
    claims = [{"of": "bits/dim", "less": "a", "more": "b", **report.verdict(bits["a"], bits["b"])}]
    table = report.markdown(bits, quality, claims)
    assert "| a | 1.100 ± 0.100 |" in table and "| a; ddpm | 6.00 ± 1.00 | 4.00 ± 0.00 |" in table
    assert "| bits/dim: a < b | 0.900 ± 0.100 | reproduced |" in table
