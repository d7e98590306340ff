"""Between two starting points of a run."""

import torch


def slerp(a, b, weight):
    """(sin((1 - weight) theta) a + sin(weight theta) b) / sin theta, theta the angle between a and b: along the sphere.

    Where the two are (anti)parallel the sphere gives no way, and it is the straight line.

    Args:
        a, b: [n, C, *] or one sample [1, C, *], such as the noise of two seeds or the inversions of two images.
        weight: a number, or [n]; 0 is a, 1 is b.

    Returns [n, C, *] in a's dtype. Two samples of Gaussian noise are about orthogonal, so what lies between keeps
    their length, which the straight line does not.
    Source: Song et al., "Denoising diffusion implicit models", 2021, appendix D.5; Shoemake, "Animating rotation with
    quaternion curves", 1985.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"b must have samples of shape {list(a.shape[1:])}, got {list(b.shape[1:])}")
    weight = torch.as_tensor(weight, dtype=torch.float64, device=a.device).reshape(-1, 1)
    n = max(len(a), len(b))
    for name, value in (("a", a), ("b", b), ("weight", weight)):
        if len(value) not in (1, n):
            raise ValueError(f"{name} must have 1 or n = {n} entries, got {len(value)}")
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1)[:, None].clamp(-1, 1)
    theta, straight = torch.acos(cosine), cosine.abs() > 1 - 1e-12
    sine = torch.where(straight, 1, torch.sin(theta))
    first = torch.where(straight, 1 - weight, torch.sin((1 - weight) * theta) / sine)
    second = torch.where(straight, weight, torch.sin(weight * theta) / sine)
    return (first * flat_a + second * flat_b).unflatten(1, a.shape[1:]).to(a.dtype)
