"""Steps and loops of improved-diffusion: GaussianDiffusion and SpacedDiffusion."""

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.processes import SigmaProcess
from fastdiff.samplers import ddim, ddim_reverse, ddpm
from tests.processes.golden import error, load, network
from tests.samplers.runs import states

STEPS, LOOPS = load("gaussian_steps"), load("spaced_runs")
BETAS = {"linear1000": schedules.linear(1000), "cosine100": schedules.cosine(100)}
TRAJECTORIES = {run["key"]: run for run in LOOPS["trajectories"]}
SAMPLERS = {
    "p_sample.clip1": lambda process: ddpm(process),
    "ddim_sample.eta0.0.clip1": lambda process: ddim(process),
    "ddim_sample.eta0.5.clip1": lambda process: ddim(process, eta=0.5),
    "ddim_sample.eta1.0.clip1": lambda process: ddim(process, eta=1.0),
    "ddim_sample.eta0.5.clip0": lambda process: ddim(process, eta=0.5, clip=None),
    "ddim_reverse_sample.clip1": lambda process: ddim_reverse(process, to_noise=True),
}


def step(name, kind, sampler, prefix=""):
    """One row of the sampler at t = 0, 1, T/2, T - 1, one timestep per sample; and what was recorded."""
    (prediction, variance), T = kind.split(".")[:2], len(BETAS[name])
    process = GaussianProcess(BETAS[name], prediction, variance)
    x, t, noise = STEPS[f"{name}.{prefix}q_sample"], STEPS[f"{name}.t"], STEPS[f"{name}.step_noise"].double()
    model = network({key: STEPS[f"{name}.model.{key}"] for key in ["a", "a2", "b", "p", "q"]}, prediction, variance)
    output = model(x, t * (1000 / T) if kind.endswith("rescale1") else t)
    plan = SAMPLERS[sampler](process)
    rows = t if sampler.startswith("ddim_reverse") else T - 1 - t
    stepped = ops.reverse_step(x, output, plan.table(dtype=x.dtype), rows, noise=noise.to(x.dtype))
    return stepped, STEPS[f"{name}.{prefix}{kind}.{sampler}"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["eps.fixed_small", "eps.learned_range", "x0.fixed_large", "xprev.learned"])
@pytest.mark.parametrize("name", BETAS)
def test_steps_in_float64(backend, name, kind, sampler):
    tolerance = 1e-9 if kind.startswith("xprev") else 1e-10  # its x0 loses digits where x_0's coefficient is small
    assert error(*step(name, f"{kind}.rescale{int(name == 'cosine100')}", sampler)) < tolerance


@pytest.mark.parametrize("sampler", ["p_sample.clip1", "ddim_sample.eta0.5.clip1", "ddim_reverse_sample.clip1"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "xprev"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_steps_in_float32(backend, prediction, variance, sampler):
    tolerance = 1e-3 if prediction == "xprev" and sampler != "p_sample.clip1" else 2e-5
    assert error(*step("cosine100", f"{prediction}.{variance}.rescale0", sampler, "float32.")) < tolerance


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop.eta0.0", "ddim_sample_loop.eta0.5",
                                  "ddim_sample_loop.eta1.0", "ddim_sample_loop.eta0.0.clip0"])  # fmt: skip
@pytest.mark.parametrize("key", TRAJECTORIES)
def test_strided_loops(backend, key, loop):
    """Sections and 'ddimN'; learned_range takes its ends from the strided tables; original times reach the network."""
    run = TRAJECTORIES[key]
    process = GaussianProcess(getattr(schedules, run["schedule"])(run["T"]), run["mean_type"], run["var_type"])
    if loop == "p_sample_loop":
        plan = ddpm(process, run["respacing"])
    else:
        clip = None if loop.endswith("clip0") else 1.0
        plan = ddim(process, run["respacing"], eta=float(loop.split("eta")[1][:3]), clip=clip)
    constants = {name: LOOPS[f"model.{name}"] for name in ["a", "a2", "b", "p", "q"]}
    model = network(constants, run["mean_type"], run["var_type"])
    factor = 1000 / run["T"] if run["rescale_timesteps"] else 1
    noise = LOOPS[f"{key}.step_noise"]
    visited = states(plan, lambda x, t: model(x, t * factor), LOOPS[f"{key}.x_T"], lambda row: noise[row])
    for x, expected in zip(visited[1:], LOOPS[f"{key}.{loop}.sample"], strict=True):
        assert error(x, expected) < 1e-4


def test_no_noise_at_the_last_step_of_a_learned_variance():
    """std is 1 where the network scales the noise, and 0 at t = 0."""
    for variance in ("learned", "learned_range"):
        plan = ddpm(GaussianProcess(schedules.linear(100), variance=variance))
        assert plan.learned and plan["std"].tolist() == [1.0] * 99 + [0.0]


def test_ddim_reverse_undoes_ddim():
    """On data whose noise prediction is exact and the same at every point, there and back is the identity."""
    process = GaussianProcess(schedules.linear(1000))
    constant = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)

    def model(x, t):
        return constant

    x = torch.tensor([[[[0.3]]]], dtype=torch.float64)
    plans = ddim_reverse(process, 50, clip=None), ddim(process, 50, clip=None)
    assert plans[0].time.tolist() == plans[1].time.flip(0).tolist()[:-1]
    noisy = states(plans[0], model, x)[-1]
    back = states(plans[1], model, noisy)
    assert error(back[-2], x) < 1e-12
    with pytest.raises(ValueError, match="timesteps must be at least 2, to go from one to the next, got 1"):
        ddim_reverse(process, 1)
    with pytest.raises(ValueError, match="to_noise must be False in a variance-exploding view"):
        ddim_reverse(SigmaProcess(), 5, to_noise=True)
