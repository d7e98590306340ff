"""How far apart two sets of images are, in the features of a network."""

import torch


def frechet_distance(a, b):
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), C the covariances: of features [N, D], float64.

    The Wasserstein distance, squared, of the two normal distributions of these moments. It grows by about a constant
    over N where N is small: compare sets of one size. Raises ValueError where shapes differ, N is below 2, or a feature
    is not finite.
    Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017.
    """
    for name, features in (("a", a), ("b", b)):
        if features.dim() != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            got = list(features.shape)
            raise ValueError(f"{name} must be of shape [N, {a.shape[-1]}] with N at least 2, got {got}")
        if not features.isfinite().all():
            raise ValueError(f"{name} must be finite, got {int((~features.isfinite()).sum())} features that are not")
    a, b = a.double(), b.double()
    C_a, C_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    # The root's trace is that of (R C_b R)^(1/2), R = C_a^(1/2), whose matrix is symmetric.
    values, vectors = torch.linalg.eigh(C_a)
    R = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(R @ C_b @ R).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + C_a.trace() + C_b.trace() - 2 * cross).item()
