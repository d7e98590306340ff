"""diffusers' schedulers and our plans side by side, step by step, with one network and one noise, in float32."""

import functools

import diffusers
import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import Nodes, SigmaView, spacing
from fastdiff.samplers import (
    ddim,
    ddpm,
    dpm_2,
    dpm_multistep,
    dpm_singlestep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    euler_ancestral,
    heun,
    ipndm,
    lms,
    unipc,
)
from tests.processes.golden import error
from tests.samplers.runs import states

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own
STEPS = 12
LINEAR = schedules.linear(1000)


def network(x, t):
    """Any smooth function of both; of the scale of noise."""
    return 0.7 * torch.tanh(1.3 * x) + 0.2 * torch.cos(t.float() / 90).view(-1, 1, 1, 1) + 0.1 * x.roll(1, -1)


def with_variance(x, t):
    return torch.cat([network(x, t), torch.tanh(x + 0.3)], 1)


def noise(seed=5):
    """Draws in a peer's order: one of the state's shape a time."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(2, 3, 5, 5, generator=generator)


def start(scale=1.0):
    return scale * torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))


def peer_states(scheduler, model, x, **options):
    """x before each of the scheduler's steps, and after the last."""
    if "generator" in options:
        options["generator"] = torch.Generator().manual_seed(options["generator"])
    visited = [x]
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, **options).prev_sample
        visited.append(x)
    return visited


def assert_same(plan, scheduler, x, model=network, rows=None, **options):
    ours = states(plan, model, x, noise(options.get("generator", 0)))
    peers = peer_states(scheduler, model, x, **options)
    ours = ours if rows is None else [ours[row] for row in rows]
    assert len(ours) == len(peers)
    for mine, theirs in zip(ours, peers, strict=True):
        assert error(mine, theirs) < 5e-5


def made(name, **config):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(STEPS)
    return scheduler


# ---- DDIM and DDPM ----


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("prediction, kind", [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_ddim_with_its_default_clip_keeps_the_raw_eps(backend, prediction, kind, eta, clipped):
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction)
    assert scheduler.config.clip_sample
    scheduler.set_timesteps(10)
    plan = ddim(GaussianProcess(LINEAR, kind), spacing.leading(1000, 10), eta=eta, clipped_eps=clipped)
    assert plan.time.tolist() == scheduler.timesteps.tolist()
    options = {"generator": 7} if eta else {}
    assert_same(plan, scheduler, start(), eta=eta, use_clipped_model_output=clipped, **options)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("spaced", ["leading", "linspace"])
def test_ddpm_learned_range_with_strided_steps(backend, spaced, steps):
    """The ends of the range are those of the strided steps, not of the whole process."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", timestep_spacing=spaced)
    scheduler.set_timesteps(steps)
    plan = ddpm(GaussianProcess(LINEAR, variance="learned_range"), getattr(spacing, spaced)(1000, steps))
    assert plan.time.tolist() == scheduler.timesteps.tolist()
    assert_same(plan, scheduler, start(), with_variance, generator=9)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_zero_terminal_snr_with_v_prediction(backend, name):
    """The first step starts where alpha = 0: x0 = -v there."""
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(10)
    process = GaussianProcess(schedules.zero_terminal_snr(LINEAR), "v")
    solver, options = (ddim, {"clipped_eps": False}) if name == "DDIMScheduler" else (ddpm, {})
    plan = solver(process, spacing.trailing(1000, 10), **options)
    assert plan.time[0] == 999 and (plan["p_x"][0], plan["p_m"][0]) == (0, -1)
    assert_same(plan, scheduler, start(), **({} if name == "DDIMScheduler" else {"generator": 4}))


def test_euler_in_any_view_starts_without_signal(backend):
    """At zero terminal SNR the noise level is infinite; written in alpha and sigma the step is that of DDIM."""
    process = GaussianProcess(schedules.zero_terminal_snr(LINEAR), "v")
    one, other = euler(process, 10), ddim(process, 10)
    torch.testing.assert_close(one.rows, other.rows, rtol=1e-12, atol=1e-12)
    assert one.rows[:, 1:3].isfinite().all()


# ---- Exponential integrators ----


def sigma_nodes(scheduler, process):
    """Integer timesteps where there are any; the noise levels are the process' own."""
    last = 0 if scheduler.config.final_sigmas_type == "sigma_min" else None
    return process.nodes(scheduler.timesteps, end=last)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant, final", [("bh1", "sigma_min"), ("bh2", "zero")])
@pytest.mark.parametrize("disabled", [[], [0, 1], [0, 4, 5]])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_unipc_with_the_corrector_disabled_on_some_steps(order, variant, final, disabled, lower_order_final):
    if final == "zero" and order > 1 and not lower_order_final:
        final = "sigma_min"  # the peer divides by an infinite step
    process = GaussianProcess(LINEAR)
    scheduler = made(
        "UniPCMultistepScheduler", solver_order=order, solver_type=variant, final_sigmas_type=final,
        disable_corrector=disabled, lower_order_final=lower_order_final,
    )  # fmt: skip
    plan = unipc(
        process, sigma_nodes(scheduler, process), clip=None, order=order, variant=variant, uncorrected=disabled,
        lower_order_final=lower_order_final,
    )  # fmt: skip
    assert_same(plan, scheduler, start())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_multistep(order, solver_type, algorithm):
    process = GaussianProcess(LINEAR)
    scheduler = made(
        "DPMSolverMultistepScheduler", solver_order=order, solver_type=solver_type, algorithm_type=algorithm,
        final_sigmas_type="sigma_min" if algorithm == "dpmsolver" else "zero",
    )  # fmt: skip
    options = {"clip": None, "solver_type": solver_type, "lower_order_final": True}
    nodes = sigma_nodes(scheduler, process)
    if algorithm == "dpmsolver":
        plan = dpm_multistep(process, nodes, order=order, **options)
    else:
        solver = functools.partial({1: ddim, 2: dpmpp_2m, 3: dpmpp_3m}[order], process, nodes)
        plan = solver(clip=None) if order == 1 else solver(**options)
    assert_same(plan, scheduler, start())


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpmpp_2m_sde(solver_type):
    process = GaussianProcess(LINEAR)
    scheduler = made("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_type=solver_type)
    plan = dpmpp_2m_sde(process, sigma_nodes(scheduler, process), clip=None, solver_type=solver_type)
    assert_same(plan, scheduler, start(), generator=11)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("predict, algorithm", [("eps", "dpmsolver"), ("x0", "dpmsolver++")])
@pytest.mark.parametrize("steps", [12, 13, 14])
def test_dpm_singlestep(order, solver_type, predict, algorithm, steps):
    process = GaussianProcess(LINEAR)
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=order, solver_type=solver_type, algorithm_type=algorithm, lower_order_final=True,
        final_sigmas_type=final,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    nodes = sigma_nodes(scheduler, process)
    plan = dpm_singlestep(process, nodes, clip=None, order=order, predict=predict, solver_type=solver_type)
    called = [row for row in range(len(plan)) if plan.call[row]]
    assert_same(plan, scheduler, start(), rows=[*called, len(plan)])


# ---- The variance-exploding view ----


def viewed(scheduler, process):
    """The view through a scheduler's noise levels, its network fed the scheduler's fractional times."""
    sigmas = scheduler.sigmas.double().unique(sorted=True).flip(0)
    return SigmaView(process), SigmaView(process).at(scheduler.timesteps.double().unique(sorted=True).flip(0), sigmas)


@pytest.mark.parametrize("spaced", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction, kind", [("epsilon", "eps"), ("v_prediction", "v")])
def test_heun(prediction, kind, spaced):
    scheduler = made("HeunDiscreteScheduler", prediction_type=prediction, timestep_spacing=spaced,
                     beta_start=0.0001, beta_end=0.02)  # fmt: skip
    view, nodes = viewed(scheduler, GaussianProcess(LINEAR, kind))
    plan = heun(view, nodes, clip=None)
    assert_same(plan, scheduler, start(scheduler.init_noise_sigma))


@pytest.mark.parametrize("churn", [
    {}, {"s_churn": 4.0}, {"s_churn": 100.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01},
])  # fmt: skip
def test_euler_with_churn(churn):
    """diffusers asks the network before the noise comes, and takes its eps for that of the noisier point."""
    scheduler = made("EulerDiscreteScheduler")
    view, nodes = viewed(scheduler, GaussianProcess(LINEAR))
    plan = euler(view, nodes, clip=None, ask_after_churn=False, **churn)
    assert len(plan) == STEPS and (plan["std"] > 0).any() == bool(churn)
    options = {"generator": 21, **churn} if churn else {}
    assert_same(plan, scheduler, start(scheduler.init_noise_sigma), **options)
    with pytest.raises(ValueError, match=r"clip must be None where ask_after_churn is False, got 1.0"):
        euler(view, nodes, ask_after_churn=False)


def test_euler_ancestral():
    scheduler = made("EulerAncestralDiscreteScheduler")
    view, nodes = viewed(scheduler, GaussianProcess(LINEAR))
    assert_same(euler_ancestral(view, nodes, clip=None), scheduler, start(scheduler.init_noise_sigma), generator=2)


def test_lms():
    scheduler = made("LMSDiscreteScheduler", beta_start=0.0001, beta_end=0.02)
    view, nodes = viewed(scheduler, GaussianProcess(LINEAR))
    assert_same(lms(view, nodes, clip=None), scheduler, start(scheduler.init_noise_sigma))


def test_ipndm():
    """A network of v on the circle alpha = cos, sigma = sin; given betas are its sigmas."""
    sigma = torch.linspace(0.99, 0, STEPS + 1, dtype=torch.float64)
    scheduler = made("IPNDMScheduler", trained_betas=sigma.tolist())
    alpha = (1 - sigma.square()).sqrt()
    nodes = Nodes(scheduler.timesteps.double(), alpha, sigma, alpha[:-1], -sigma[:-1], torch.ones(STEPS))
    assert_same(ipndm(None, nodes, clip=None), scheduler, start())


def test_dpm_2():
    """Its midpoints lie at noise levels between the grid's, and at times interpolated in their logarithm."""
    scheduler = made("KDPM2DiscreteScheduler", beta_start=0.0001, beta_end=0.02)
    process = GaussianProcess(LINEAR)
    sigmas = scheduler.sigmas.double().unique(sorted=True).flip(0)
    plan = dpm_2(SigmaView(process), SigmaView(process).at(scheduler.timesteps[::2].double(), sigmas), clip=None)
    torch.testing.assert_close(plan.time.float(), scheduler.timesteps, rtol=1e-3, atol=1e-2)
    assert_same(plan, scheduler, start(scheduler.init_noise_sigma))
