"""What the tests of the parts share."""

import math

import torch


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def rms(x, weight):
    return x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) * math.sqrt(x.shape[1]) * weight[:, None, None]
