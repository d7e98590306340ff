"""The Frechet distance, and the features of digits."""

import pytest
import torch

from fastdiff.evaluation.digit_features import DigitFeatures, split
from fastdiff.evaluation.frechet import frechet_distance


def of_moments(mean, covariance, N, seed=0):
    """[N, D] of exactly these moments."""
    x = torch.randn(N, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normals():
    """Commuting covariances: |m - n|^2 + sum of (sqrt(a_i) - sqrt(b_i))^2; and the matrix root by scipy."""
    scipy = pytest.importorskip("scipy.linalg")
    m, n = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 2.0, 2.0]).double()
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 9.0]).double()
    found = frechet_distance(of_moments(m, a.diag(), 50), of_moments(n, b.diag(), 70, seed=1))
    assert found == pytest.approx(5 + 1 + 1, rel=1e-9)
    A = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 3.0]]).double()
    B = torch.tensor([[1.0, -0.5, 0.2], [-0.5, 2.0, 0.0], [0.2, 0.0, 1.0]]).double()
    root = torch.from_numpy(scipy.sqrtm((A @ B).numpy()).real)
    expected = 5 + (A + B - 2 * root).trace().item()
    assert frechet_distance(of_moments(m, A, 50), of_moments(n, B, 50, seed=1)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_refuses():
    with pytest.raises(ValueError, match=r"b must be of shape \[N, 3\] with N at least 2, got \[4, 2\]"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"a must be of shape \[N, 3\] with N at least 2, got \[1, 3\]"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="b must be finite, got 12 features that are not"):
        frechet_distance(torch.zeros(4, 3), torch.full((4, 3), torch.nan))


@pytest.mark.slow
def test_digit_features(one_thread):
    """They tell digits apart; held-out digits are near the others, noisy and mirrored ones far."""
    images, labels, held_out, _ = split()
    assert (len(images), len(held_out), len(labels)) == (1498, 299, 1498)
    features = DigitFeatures.trained()
    assert features.accuracy() > 0.96
    near = frechet_distance(features(held_out), features(images))
    noisy = (held_out + torch.randint(0, 60, held_out.shape)).clamp(max=255).to(torch.uint8)
    assert 2 * near < min(frechet_distance(features(x), features(images)) for x in (noisy, held_out.flip(-1)))
