"""NCSN's ladder of noise levels."""

import math

import pytest
import torch

from fastdiff.processes import NCSNProcess


def test_levels_are_geometric_from_the_noisiest():
    process = NCSNProcess()
    assert process.num_timesteps == 10 and process.prior_std == pytest.approx(1)
    assert process.sigma[-1].item() == pytest.approx(0.01)
    ratios = process.sigma[:-1] / process.sigma[1:]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 100 ** (1 / 9)))
    assert torch.equal(process.alpha, torch.ones(10, dtype=torch.float64))


def test_networks_are_fed_the_index_and_return_the_score():
    process = NCSNProcess(4, 8.0, 1.0)
    nodes = process.nodes()
    assert nodes.time.dtype is torch.int64 and nodes.time.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(nodes.sigma, torch.tensor([8.0, 4, 2, 1, 0], dtype=torch.float64))
    assert nodes.alpha.tolist() == [1] * 5
    assert nodes.p_x.tolist() == [1] * 4
    torch.testing.assert_close(nodes.p_m, nodes.sigma[:-1] ** 2)


def test_fewer_levels_keep_their_indices():
    nodes = NCSNProcess(7).nodes([6, 0, 3])
    assert nodes.time.tolist() == [0, 3, 6]
    torch.testing.assert_close(nodes.sigma[:-1], NCSNProcess(7).sigma[[0, 3, 6]])
    assert NCSNProcess(7).respace(3).nodes(2).time.tolist() == [0, 6]


@pytest.mark.parametrize("prediction", ["score", "eps", "x0", "v"])
def test_predictions_invert(backend, prediction):
    process = NCSNProcess(10, prediction=prediction)
    generator = torch.Generator().manual_seed(1)
    x_start, noise = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([0, 5, 9])
    x_t = process.q_sample(x_start, t, noise)
    sigma = process.sigma[t].view(-1, 1, 1)
    torch.testing.assert_close(x_t, x_start + sigma * noise)
    output = process.target(x_start, t, noise)
    expected = {"eps": noise, "score": -noise / sigma, "x0": x_start, "v": noise - sigma * x_start}[prediction]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(process.predict_x0(x_t, t, output), x_start)
    assert process.target(x_start.float(), t, noise.float()).dtype is torch.float32


def test_levels_may_be_given():
    process = NCSNProcess([3.0, 1.0, 0.5])
    assert process.sigma.tolist() == [3.0, 1.0, 0.5] and "3 levels, sigma 3 to 0.5" in repr(process)


@pytest.mark.parametrize("make, kind, message", [
    (lambda: NCSNProcess(1), ValueError, "levels must be at least 2, got 1"),
    (lambda: NCSNProcess([1.0, 2.0]), ValueError, r"levels must be decreasing positive numbers, got \[1.0, 2.0\]"),
    (lambda: NCSNProcess([1.0, -2.0]), ValueError, "levels must be decreasing positive numbers"),
    (lambda: NCSNProcess([math.inf, 2.0]), ValueError, "levels must be decreasing positive numbers"),
    (lambda: NCSNProcess(sigma_max=0.001), ValueError, r"sigma_min must be in \(0, sigma_max\), got 0.01"),
    (lambda: NCSNProcess(prediction="xprev"), ValueError, "prediction must be one of eps, score, x0, v, got 'xprev'"),
    (lambda: NCSNProcess().predict_x0(torch.zeros(1, 1), torch.tensor([10]), torch.zeros(1, 1)), IndexError,
     r"t must be in \[0, 10\), got 10"),
    (lambda: NCSNProcess().predict_x0(torch.zeros(1, 1), torch.tensor([1.0]), torch.zeros(1, 1)), ValueError,
     r"t must be int64 of shape \[1\], got torch.float32 \[1\]"),
    (lambda: NCSNProcess().nodes([10]), ValueError, r"timesteps must be in \[0, 10\), got 10"),
])  # fmt: skip
def test_refusals_name_the_argument(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
