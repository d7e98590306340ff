"""The judge of digits: it believes real ones, and neither noise, nor copies, nor a single class."""

import numpy as np
import pytest
import torch

from fastdiff import cli
from fastdiff.data import load
from fastdiff.data.sources import digits
from fastdiff.evaluation.digits import judge


def blurred(images, generator):
    """Digits that are none of the real ones: each a little moved, of another strength, with a little noise."""
    x = images.float()
    moved = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, 0.8 * x + 0.2 * x.roll(1, -1))
    return (moved + 8 * torch.randn(x.shape, generator=generator)).clamp(0, 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def real():
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:500]
    return images[order], labels[order]


def test_real_digits_that_were_moved(real):
    report = judge(blurred(real[0], torch.Generator().manual_seed(1)))
    assert report.accuracy >= 0.97
    assert report.shares.shape == (10,) and report.shares.sum() == pytest.approx(1)
    assert np.abs(report.shares - real[1].bincount().numpy() / 500).max() < 0.02
    assert report.confidence > 0.9 and report.distance_ratio > 0.4
    assert report.convinces() == (report.distance_ratio >= 0.8)


def test_copies_are_found(real):
    report = judge(real[0])
    assert report.distance_ratio == 0 and not report.convinces()


def test_noise_is_not_believed():
    noise = torch.randint(0, 256, (500, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    report = judge(noise)
    assert report.confidence < 0.9 and report.distance_ratio > 2 and not report.convinces()


def test_a_missing_class_is_noticed(real):
    images, labels = real
    report = judge(images[labels != 3])
    assert report.shares[3] < 0.04 and not report.convinces()


@pytest.mark.parametrize("samples", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [1],
                                     torch.zeros(0, 1, 8, 8, dtype=torch.uint8)])  # fmt: skip
def test_bad_samples(samples):
    with pytest.raises(ValueError, match=r"samples must be uint8 \[N, 1, 8, 8\], got "):
        judge(samples)


@pytest.mark.slow
def test_the_main_job(tmp_path):
    """What the README's command trains draws digits of every class, and none that it has seen."""
    assert cli.main(["train", "--data", "digits", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    out = tmp_path / "samples.npz"
    assert cli.main(["sample", str(tmp_path / "run"), "-n", "500", "--seed", "1", "--quiet", "--out", str(out)]) == 0
    report = judge(load(out).images)
    assert report.convinces(), report
