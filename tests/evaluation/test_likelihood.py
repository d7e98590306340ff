"""Likelihoods by the probability flow: recorded numbers, and densities that are known."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.evaluation.likelihood import bits_per_dim, log_likelihood, uniform
from fastdiff.processes import VESDE, VPSDE, InterpolatedProcess, SubVPSDE
from tests.processes.golden import error
from tests.processes.score_sde import PROCESSES, recorded
from tests.samplers.known import Gaussian
from tests.samplers.test_dpm_fast import recorded as recorded_mixture

DISCRETE = GaussianProcess(schedules.linear(1000))


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_likelihoods_are_those_of_score_sde(kind, dtype, tolerance):
    """RK45 at 1e-5 from t = 1e-5, nominal prior, 7 bits for images in [-1, 1]."""
    arrays, process, _, data = recorded(kind)
    found = log_likelihood(data.model(process), process, arrays["x"].to(dtype))
    torch.testing.assert_close(
        found.bits_per_dim + 7, arrays[f"{kind}.likelihood.bpd"].double(), rtol=0, atol=tolerance
    )
    assert error(found.z, arrays[f"{kind}.likelihood.z"]) < tolerance and found.z.dtype is dtype
    assert found.nats.dtype is torch.float64


@pytest.mark.parametrize("key, tolerance, wanted", [("default", 1e-4, 2e-4), ("tight", 1e-8, 1e-7)])
def test_likelihoods_are_those_of_k_diffusion(key, tolerance, wanted):
    """A VE process from sigma_min to sigma_max is k-diffusion's, whose dopri5 steps in sigma, not its logarithm."""
    arrays, _, data = recorded_mixture()
    process = VESDE(0.01, 40.0, prediction="x0")
    options = {"t_start": 0.0, "method": "dopri5", "rtol": tolerance, "atol": tolerance}
    found = log_likelihood(data.model(process), process, arrays["loglik.x"], **options)
    torch.testing.assert_close(found.nats, arrays[f"loglik.{key}"], rtol=wanted, atol=0)
    torch.testing.assert_close(found.nats, arrays["loglik.exact_smoothed_density"], rtol=2e-3, atol=0)


@pytest.mark.parametrize("process", [VPSDE(), SubVPSDE(), VESDE(sigma_max=348.0), DISCRETE], ids=repr)
@pytest.mark.parametrize("exact", [False, True])
def test_a_gaussian_has_its_density(process, exact):
    """To 1e-3 nats per dimension; the divergence of a diagonal flow needs no luck with its probe."""
    known = InterpolatedProcess(process) if process is DISCRETE else process
    mean, std, t = 0.3, 0.4, known.t_min if process is DISCRETE else 1e-5
    generator = torch.Generator().manual_seed(1)
    x = mean + std * torch.randn(4, 2, 3, 2, dtype=torch.float64, generator=generator)
    found = log_likelihood(Gaussian(mean, std).model(known), process, x, exact=exact)
    deviation = ((known.alpha(t) * std) ** 2 + known.sigma(t) ** 2).sqrt()
    density = torch.distributions.Normal(known.alpha(t) * mean, deviation).log_prob(x).flatten(1).sum(1)
    assert ((found.nats - density).abs() / 12).max() < 1e-3
    with pytest.raises(AssertionError):
        assert ((found.nats * 1.01 - density).abs() / 12).max() < 1e-3


def correlated(process, dimensions=3):
    """(model, log density at a time) of Gaussian data whose channels are correlated."""
    A = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.3]], dtype=torch.float64)[
        :dimensions, :dimensions
    ]
    covariance = A @ A.T

    def marginal(t):
        return process.alpha(t) ** 2 * covariance + process.sigma(t) ** 2 * torch.eye(dimensions, dtype=torch.float64)

    def model(x, label):
        t = label[0].double() / 999
        eps = process.sigma(t) * torch.linalg.inv(marginal(t))
        return torch.einsum("ij,bjhw->bihw", eps.to(x.dtype), x)

    def density(x, t):
        normal = torch.distributions.MultivariateNormal(torch.zeros(dimensions, dtype=torch.float64), marginal(t))
        return normal.log_prob(x.movedim(1, -1)).flatten(1).sum(1)

    return model, density


def test_hutchinsons_estimate_is_unbiased_and_the_exact_divergence_exact():
    """Channels that depend on one another, so that a probe errs: the exact divergence does not, many probes agree."""
    process = VPSDE()
    model, density = correlated(process)
    x = 0.5 * torch.randn(3, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = density(x, 1e-5)
    exact = log_likelihood(model, process, x, exact=True)
    assert ((exact.nats - wanted).abs() / 6).max() < 1e-3
    single = torch.stack([log_likelihood(model, process, x, seed=seed).nats for seed in range(24)])
    spread = single.std(0)
    assert (spread > 0.05).all()
    assert ((single.mean(0) - exact.nats).abs() < 4 * spread / 24**0.5 + 1e-3).all()
    several = log_likelihood(model, process, x, probes=24)
    assert ((several.nats - exact.nats).abs() < 4 * spread / 24**0.5 + 1e-3).all()
    assert ((several.nats - single[0]).abs() > 1e-6).all()


def test_probes_are_a_samples_own():
    """Sample 5 has the same probe, alone or among others; with few elements solver steps hardly differ."""
    process = VPSDE()
    model, _ = correlated(process)
    x = 0.5 * torch.randn(3, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([9, 5, 7])
    options = {"seed": 3, "rtol": 1e-7, "atol": 1e-7}
    whole = log_likelihood(model, process, x, sample_ids=ids, **options)
    alone = log_likelihood(model, process, x[1:2], sample_ids=[5], **options)
    torch.testing.assert_close(alone.nats, whole.nats[1:2], rtol=1e-5, atol=1e-5)
    other = log_likelihood(model, process, x[1:2], sample_ids=[6], **options)
    assert (other.nats - alone.nats).abs() > 1e-3


def test_bits_per_dim_of_images():
    """7 bits are the bins' width; noise of its own seed fills them, as u -> (u + uniform) / 128 - 1."""
    process, data = VPSDE(), Gaussian(0.0, 0.5)
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    noise = uniform(torch.empty(2, 1, 4, 4), 5, torch.arange(2))
    x = (images + noise) / 128 - 1
    wanted = log_likelihood(data.model(process), process, x, seed=5).bits_per_dim + 7
    torch.testing.assert_close(bits_per_dim(data.model(process), process, images, seed=5), wanted)
    scaled = images / 127.5 - 1
    torch.testing.assert_close(bits_per_dim(data.model(process), process, scaled, seed=5), wanted)
    plain = bits_per_dim(data.model(process), process, images, dequantize=False)
    torch.testing.assert_close(plain, log_likelihood(data.model(process), process, scaled).bits_per_dim + 7)
    assert (plain - wanted).abs().max() > 1e-4


def test_uniform_noise_is_uniform():
    u = uniform(torch.empty(4, 1, 128, 128), 1, torch.arange(4))
    assert u.min() >= 0 and u.max() <= 1
    counts = torch.histc(u, bins=16, min=0, max=1)
    expected = u.numel() / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi square, 15 degrees of freedom, p = 0.001
    assert torch.equal(uniform(torch.empty(1, 1, 128, 128), 1, torch.tensor([2])), u[2:3])


def test_channels_of_a_learned_variance_are_not_read():
    process, data = VPSDE(), Gaussian(0.0, 0.5)
    x, model = torch.full((1, 2, 2, 2), 0.3), data.model(process)
    wanted = log_likelihood(model, process, x)
    found = log_likelihood(lambda x, t: torch.cat([model(x, t), torch.full_like(x, torch.nan)], 1), process, x)
    assert torch.equal(found.nats, wanted.nats)


def test_models_run_as_in_a_sampler():
    process, x = VPSDE(), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    expected = log_likelihood(lambda x, t: 0.1 * x, process, x, rtol=1e-2, atol=1e-2).nats
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2, bias=False))
    network[1].weight.data.copy_(0.1 * torch.eye(2))
    found = log_likelihood(lambda x, t: (network.eval()(x),), process, x, rtol=1e-2, atol=1e-2).nats
    torch.testing.assert_close(found, expected)

    class Timed(torch.nn.Sequential):
        def forward(self, x, t):
            return {"sample": super().forward(x)}

    timed = Timed(*network).train()
    torch.testing.assert_close(log_likelihood(timed, process, x, rtol=1e-2, atol=1e-2).nats, expected)
    assert timed[0].training
    with pytest.raises(ValueError, match="model must be differentiable in x, got an output without gradients"):
        log_likelihood(torch.no_grad()(lambda x, t: 0.1 * x), process, x)


def test_it_works_where_gradients_are_off():
    process, data = VPSDE(), Gaussian(0.0, 0.5)
    x = torch.zeros(1, 1, 2, 2)
    wanted = log_likelihood(data.model(process), process, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = log_likelihood(data.model(process), process, x.clone(), method="dopri5")
        torch.testing.assert_close(found.nats, wanted.nats, rtol=1e-3, atol=1e-3)
    assert wanted.calls > 20


@pytest.mark.parametrize("change, kind, message", [
    ({"x": torch.zeros(1, 1, dtype=torch.int64)}, TypeError, "x must be float32 or float64, got torch.int64"),
    ({"x": torch.zeros(0, 1)}, ValueError, r"x must have shape \[B, C, \*\] and hold something, got \[0, 1\]"),
    ({"probes": 0}, ValueError, "probes must be an int of at least 1, got 0"),
    ({"sample_ids": [1, 2]}, ValueError, "sample_ids must be 1 ints, got torch.int64 "),
    ({"t_start": 0.0}, ValueError, "t_start must be before 1, at a positive sigma, got 0.0"),
    ({"t_start": 1.0}, ValueError, "t_start must be before 1, at a positive sigma, got 1.0"),
    ({"method": "euler"}, ValueError, "method must be one of RK45, "),
])  # fmt: skip
def test_refusals(change, kind, message):
    arguments = {"model": lambda x, t: x, "process": VPSDE(), "x": torch.zeros(1, 1)} | change
    with pytest.raises(kind, match=message):
        log_likelihood(**arguments)


def test_images_of_another_kind():
    with pytest.raises(TypeError, match=r"images must be a uint8 or floating tensor, got torch.int64"):
        bits_per_dim(lambda x, t: x, VPSDE(), torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    assert math.isfinite(bits_per_dim(lambda x, t: 0 * x, VPSDE(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).item())
