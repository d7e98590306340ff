"""The SDEs: recorded numbers of score_sde, and relations that any linear SDE obeys."""

import math

import pytest
import torch

from fastdiff.processes import VESDE, VPSDE, SubVPSDE
from fastdiff.samplers import euler_maruyama, predictor_corrector, probability_flow
from tests.processes.golden import error
from tests.processes.score_sde import PROCESSES, recorded
from tests.samplers.known import spread

ALL = pytest.mark.parametrize("kind", PROCESSES)


@ALL
def test_marginals_drifts_and_priors_are_the_recorded_ones(kind):
    arrays, process, x, _ = recorded(kind)
    t, of = arrays["t"], f"{kind}.f64."
    close = {"rtol": 1e-10, "atol": 0}
    torch.testing.assert_close(spread(process.alpha(t), x) * x, arrays[of + "marginal.mean"], **close)
    torch.testing.assert_close(process.sigma(t), arrays[of + "marginal.std"], **close)
    torch.testing.assert_close(spread(process.drift(t), x) * x, arrays[of + "sde.drift"], **close)
    torch.testing.assert_close(process.diffusion(t), arrays[of + "sde.diffusion"], **close)
    torch.testing.assert_close(process.prior_log_prob(x), arrays[of + "prior_logp"], **close)
    torch.testing.assert_close(process.prior_log_prob(x.float()).double(), arrays[of + "prior_logp"], rtol=1e-5, atol=0)


@ALL
def test_the_chain_of_score_sde_truncates_its_index(kind):
    """k = trunc(t (N - 1)); VE's level before the first is 0; sub-VP's chain is Euler-Maruyama's."""
    arrays, process, x, _ = recorded(kind)
    forward = process.discretize(arrays["t"], 1000)
    torch.testing.assert_close(forward.std, arrays[f"{kind}.f64.discretize.G"], rtol=1e-10, atol=0)
    f = spread(forward.scale - 1, x) * x
    torch.testing.assert_close(f, arrays[f"{kind}.f64.discretize.f"], rtol=1e-10, atol=1e-12)
    assert (arrays["t"] * 999 % 1 > 0.5).any()  # where rounding would tell


@ALL
def test_the_reverse_drift_is_the_recorded_one(kind):
    """drift x - diffusion^2 score of the SDE (from one step of Euler-Maruyama), half the score for the flow."""
    arrays, process, x, data = recorded(kind)
    t = arrays["t"]
    x0 = data.denoiser(process)(x, t)
    of_x, of_x0 = (spread(value, x) for value in process.flow(t))
    assert error(of_x * x + of_x0 * x0, arrays[f"{kind}.f64.reverse.pf1.drift"]) < 1e-10
    for b in range(len(t)):
        plan = euler_maruyama(process, t[b : b + 1], levels=1000)
        m = (x0[b] - plan["p_x"][0] * x[b]) / plan["p_m"][0]
        moved = plan["c_x"][0] * x[b] + plan["c_m"][0] * m - x[b]
        assert error(-1000 * moved[None], arrays[f"{kind}.f64.reverse.pf0.drift"][b : b + 1]) < 1e-10


@ALL
def test_drift_and_diffusion_follow_from_the_marginals(kind):
    """d ln alpha / dt = drift, d sigma^2 / dt = 2 drift sigma^2 + diffusion^2, by central differences."""
    process, t, h = PROCESSES[kind](), torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-5
    rate = (process.alpha(t + h).log() - process.alpha(t - h).log()) / (2 * h)
    torch.testing.assert_close(process.drift(t), rate, rtol=1e-7, atol=1e-9)
    growth = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    expected = 2 * process.drift(t) * process.sigma(t) ** 2 + process.diffusion(t) ** 2
    torch.testing.assert_close(growth, expected, rtol=1e-7, atol=1e-9)


@ALL
def test_time_at_inverts_the_noise_level(kind):
    process, t = PROCESSES[kind](), torch.logspace(-5, 0, 50, dtype=torch.float64)
    torch.testing.assert_close(process.time_at(process.noise_level(t)), t, rtol=1e-10, atol=1e-15)


def test_the_deviation_of_sub_vp_is_not_a_root():
    t = torch.tensor([0.01, 0.5], dtype=torch.float64)
    torch.testing.assert_close(SubVPSDE().sigma(t), VPSDE().sigma(t) ** 2)
    torch.testing.assert_close(SubVPSDE().alpha(t), VPSDE().alpha(t))


def test_networks_are_fed_999_t_by_vp_and_sigma_by_ve():
    assert VPSDE().label(0.5).item() == SubVPSDE().label(0.5).item() == 499.5
    assert VESDE().label(0.5).item() == pytest.approx(math.sqrt(0.01 * 50))
    assert VESDE(time="linear").label(0.5).item() == 499.5
    assert (VPSDE().prediction, SubVPSDE().prediction, VESDE().prediction) == ("eps", "eps", "score")


@ALL
@pytest.mark.parametrize("prediction", ["eps", "score", "x0", "v"])
def test_predictions_are_lines_whose_inverses_are_exact(kind, prediction):
    process = PROCESSES[kind](prediction=prediction)
    generator = torch.Generator().manual_seed(1)
    x_start, noise = torch.randn(2, 6, 2, 3, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.01, 1, 6, dtype=torch.float64)
    x_t = process.q_sample(x_start, t, noise)
    alpha, sigma = spread(process.alpha(t), x_t), spread(process.sigma(t), x_t)
    torch.testing.assert_close(x_t, alpha * x_start + sigma * noise)
    output = process.target(x_start, t, noise)
    expected = {"eps": noise, "score": -noise / sigma, "x0": x_start, "v": alpha * noise - sigma * x_start}
    torch.testing.assert_close(output, expected[prediction])
    torch.testing.assert_close(process.predict_x0(x_t, t, output), x_start, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.predict_eps(x_t, t, output), noise, rtol=1e-9, atol=1e-9)


def test_q_sample_at_continuous_times(backend):
    """One fused pass from bytes, with noise of the counter RNG, as in training."""
    from fastdiff.ops import rng

    process, t = VPSDE(), torch.tensor([0.001, 0.3, 1.0])
    images = torch.arange(3 * 1 * 4 * 4, dtype=torch.uint8).reshape(3, 1, 4, 4)
    options = {"rng": rng.make_rng(3), "sample_ids": torch.arange(3), "dtype": torch.float32, "return_noise": True}
    x_t, noise = process.q_sample(images, t, **options)
    expected = spread(process.alpha(t), noise) * (images / 127.5 - 1) + spread(process.sigma(t), noise) * noise
    torch.testing.assert_close(x_t, expected, rtol=1e-6, atol=1e-6)


@ALL
def test_nodes_go_on_to_clean_data(kind):
    process = PROCESSES[kind]()
    nodes = process.nodes(5)
    t = torch.linspace(1, process.t_min, 5, dtype=torch.float64)
    torch.testing.assert_close(nodes.time, process.label(t))
    assert (nodes.alpha[-1], nodes.sigma[-1]) == (1, 0)
    torch.testing.assert_close(nodes.sigma[:-1], process.sigma(t))
    x_start, noise = torch.tensor([0.3, 0.7], dtype=torch.float64)
    m = process.target(x_start.expand(5), t, noise.expand(5))
    x = nodes.alpha[:-1] * x_start + nodes.sigma[:-1] * noise
    torch.testing.assert_close(nodes.p_x * x + nodes.p_m * m, x_start.expand(5), rtol=1e-9, atol=1e-9)
    assert (
        len(process.nodes().time) == 1000
        and process.nodes([1.0, 0.25]).time.tolist() == process.label(torch.tensor([1.0, 0.25])).tolist()
    )


@pytest.mark.parametrize("make, message", [
    (lambda: VPSDE(0), r"beta_min must be in \(0, beta_max\], got 0 and beta_max 20.0"),
    (lambda: SubVPSDE(3, 2), r"beta_min must be in \(0, beta_max\], got 3 and beta_max 2"),
    (lambda: VESDE(time="angle"), "time must be sigma or linear, got 'angle'"),
    (lambda: VESDE(1, 1), r"sigma_min must be in \(0, sigma_max\), got 1 and sigma_max 1"),
    (lambda: VPSDE(prediction="xprev"), r"prediction must be one of eps, score, x0, v, got 'xprev'"),
    (lambda: VPSDE(t_min=0.0), r"t_min must be in \(0, 1\), got 0.0"),
    (lambda: VPSDE().nodes(0), r"timesteps must be at least 1, got 0"),
    (lambda: VPSDE().nodes([0.5, 0.6]), r"timesteps must be decreasing times in \(0, 1\], got \[0.5, 0.6\]"),
    (lambda: VPSDE().nodes([1.5, 0.5]), r"timesteps must be decreasing times in \(0, 1\], got"),
    (lambda: VESDE().nodes([1.0, 0.0]), r"timesteps must be decreasing times in \(0, 1\], got"),
    (lambda: VPSDE().discretize(0.5, 20), r"N must be greater than beta_max = 20, got 20"),
    (lambda: VPSDE().q_sample(torch.zeros(2, 1), torch.tensor([0.5, 1.5])), r"t must be in \(0, 1\], got 1.5"),
    (lambda: VPSDE().predict_x0(*torch.zeros(2, 2, 1).unbind()[:1], torch.tensor([1, 2]), torch.zeros(2, 1)),
     r"t must be floating of shape \[2\], got torch.int64 \[2\]"),
])  # fmt: skip
def test_refusals_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tensors_of_other_kinds():
    process, t, x = VPSDE(), torch.tensor([0.5]), torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"x_start must be a tensor \[B, C, \*\], got list"):
        process.q_sample([0.0], t)
    with pytest.raises(TypeError, match=r"model_output must be a floating tensor, got torch.int64"):
        process.predict_x0(x, t, x.long())
    with pytest.raises(ValueError, match=r"noise must have shape \[1, 2\], got \[1, 3\]"):
        process.target(x, t, torch.zeros(1, 3))


def test_times_that_are_no_numbers():
    with pytest.raises(TypeError, match="timesteps must be times or their number, got 'many'"):
        VPSDE().nodes("many")


def test_repr():
    assert repr(VESDE(prediction="eps")) == (
        "VESDE(prediction='eps', t_min=1e-05, t_max=1.0, sigma_min=0.01, sigma_max=50.0, prior_std=50.0, "
        "time='sigma')"
    )


def test_nodes_are_timesteps_too():
    process = VPSDE()
    nodes = process.nodes([0.9, 0.4, 0.1])
    assert process.nodes(nodes) is nodes
    torch.testing.assert_close(process.times(nodes), torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64))
    for solver in (euler_maruyama, probability_flow, predictor_corrector):
        wanted, found = solver(process, [0.9, 0.4, 0.1]), solver(process, nodes)
        torch.testing.assert_close(found.rows, wanted.rows)
    with pytest.raises(ValueError, match="timesteps must be times or their number where levels is given, got Nodes"):
        predictor_corrector(process, nodes, levels=100)


def test_a_run_may_end_before_clean_data():
    """Nodes whose last point has noise: Euler-Maruyama steps there and no further."""
    process = VPSDE()
    whole = process.nodes([0.9, 0.4])
    nodes = whole._replace(alpha=process.alpha([0.9, 0.4, 0.1]), sigma=process.sigma([0.9, 0.4, 0.1]))
    plan = euler_maruyama(process, nodes, denoise=False)
    torch.testing.assert_close(plan["std"], process.diffusion([0.9, 0.4]) * torch.tensor([0.5, 0.3]).double().sqrt())
