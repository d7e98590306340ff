"""What the training tests share: a tiny network and a process, on one thread."""

import pytest
import torch

from fastdiff import GaussianProcess, UNet, UNetConfig, schedules


@pytest.fixture(autouse=True)
def _alone(one_thread):
    pass


@pytest.fixture
def make_model():
    def make(seed=0, **options):
        torch.manual_seed(seed)
        small = dict(image_size=4, in_channels=1, channels=4, channel_mult=(1, 2), attention_resolutions=(), groups=2)
        return UNet(UNetConfig(**{**small, **options}))

    return make


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(100))


@pytest.fixture
def images():
    """uint8 [20, 1, 4, 4]: two kinds of them."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 40, (20, 1, 4, 4), generator=generator)
    return torch.where(torch.arange(20).view(-1, 1, 1, 1) % 2 == 0, noise, 255 - noise).to(torch.uint8)
