"""The gradient-noise scale, and timesteps drawn by importance."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.evaluation import gradient_noise


def test_noise_scale_of_known_gradients():
    """tr(Sigma) = 50 * 4, |G|^2 = 50 * 0.09: batches of 8 have Sigma / 8."""
    generator = torch.Generator().manual_seed(0)
    gradients = 0.3 + 2 / math.sqrt(8) * torch.randn(4000, 50, generator=generator)
    assert gradient_noise.noise_scale(gradients, 8) == pytest.approx(4 / 0.09, rel=0.03)
    assert math.isnan(gradient_noise.noise_scale(torch.tensor([[1.0], [-1.0]]), 8))
    with pytest.raises(ValueError, match=r"gradients must be \[K, P\] with K at least 2, got \[1, 5\]"):
        gradient_noise.noise_scale(torch.zeros(1, 5), 8)


class Linear(torch.nn.Module):
    """eps^ = w * x + b."""

    def __init__(self):
        super().__init__()
        self.w, self.b = torch.nn.Parameter(torch.tensor(0.7)), torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t):
        return self.w * x + self.b


@pytest.fixture
def task():
    images = torch.randint(0, 256, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Linear(), GaussianProcess(schedules.cosine(20)), images


def test_importance_follows_the_losses(task):
    model, process, images = task
    p = gradient_noise.importance(model, process, images, draws=32)
    assert p.sum().item() == pytest.approx(1) and p.min() >= 0.001 / 20
    losses = []
    for t in range(20):
        times = torch.full((64,), t)
        x_t, _ = process.q_sample(
            images, times, rng=torch.tensor([5, t]), sample_ids=torch.arange(64), dtype=torch.float32, return_noise=True
        )
        losses.append(process.vlb_terms(model(x_t, times).detach(), images, x_t, times).square().mean().sqrt())
    losses = torch.stack(losses).double()
    torch.testing.assert_close(p, 0.999 * losses / losses.sum() + 0.001 / 20, rtol=0.25, atol=1e-3)


def test_importance_keeps_the_gradient_and_lessens_its_noise(task):
    """The same mean, the gradient of the whole bound, from fewer samples."""
    model, process, images = task
    options = dict(batches=600, batch_size=8)
    even = gradient_noise.gradients(model, process, images, **options)
    p = gradient_noise.importance(model, process, images, draws=32)
    drawn = gradient_noise.gradients(model, process, images, p=p, **options)
    error = (even.std(0).square() + drawn.std(0).square()).sqrt() / math.sqrt(600)
    assert ((even.mean(0) - drawn.mean(0)).abs() < 4 * error).all()
    assert gradient_noise.noise_scale(drawn, 8) < 0.7 * gradient_noise.noise_scale(even, 8)
