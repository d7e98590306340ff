"""Runs recorded from diffusers' schedulers: timesteps, noise levels, and each state given the network's outputs."""

import functools

import pytest
import torch

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import Nodes, SigmaView, spacing
from fastdiff.samplers import SOLVERS, Plan, ddim, ddpm, dpm_multistep, euler, heun, unipc
from tests.processes.golden import error, load
from tests.samplers.runs import states

RECORDED = load("diffusers_solvers")
RUNS = {run["key"]: run for run in RECORDED["runs"]}
BETAS = {"linear": lambda: schedules.linear(1000), "squaredcos_cap_v2": lambda: schedules.cosine(1000)}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def process_of(config):
    betas = BETAS[config["beta_schedule"]]()
    if config.get("rescale_betas_zero_snr"):
        betas = schedules.zero_terminal_snr(betas)
    variance = config.get("variance_type")
    return GaussianProcess(betas, PREDICTIONS[config["prediction_type"]],
                           variance if variance in ("learned", "learned_range") else "fixed_small")  # fmt: skip


def ddim_plan(run, process, timesteps):
    """One row per timestep: diffusers goes from t to t - T // S, whatever comes next in the list."""
    config, options = run["config"], dict(run["step_kwargs"])
    clipped = options.pop("use_clipped_model_output", False)
    plans = []
    for t in timesteps.tolist():
        before = t - config["num_train_timesteps"] // run["steps"]
        nodes = process.nodes([t])
        if before >= 0 or not config["set_alpha_to_one"]:
            nodes = process.nodes([t], end=max(before, 0))
        clip = config["clip_sample_range"] if config["clip_sample"] else None
        plans.append(ddim(process, nodes, clip=clip, clipped_eps=clipped, **options))
    names = ("p_x", "p_m", "bound", "c_x", "c_0", "c_m", "std")
    return Plan(timesteps, **{name: [plan[name][0].item() for plan in plans] for name in names})


def multistep_plan(run, process, sigmas):
    """DPM-Solver, DPM-Solver++ and UniPC through the recorded noise levels."""
    config, nodes = run["config"], process.through(sigmas)
    options = {"clip": None, "lower_order_final": config["lower_order_final"] and run["steps"] < 15}
    order, algorithm = config["solver_order"], config.get("algorithm_type")
    if algorithm is None:
        predict = "x0" if config["predict_x0"] else "eps"
        return unipc(
            process, nodes, clip=None, order=order, variant=config["solver_type"], predict=predict,
            uncorrected=config["disable_corrector"], lower_order_final=config["lower_order_final"],
        )  # fmt: skip
    options["lower_order_final"] |= config["euler_at_final"]
    options["solver_type"] = config["solver_type"]
    if algorithm == "dpmsolver":
        return dpm_multistep(process, nodes, order=order, **options)
    if order == 1:
        return ddim(process, nodes, clip=None, eta=float(algorithm.startswith("sde")))
    if algorithm == "sde-dpmsolver++" and order == 3:
        options["weights"] = "diffusers"
    return SOLVERS[f"dpmpp_{order}m" + "_sde" * algorithm.startswith("sde")](process, nodes, **options)


def sigma_plan(run, process, times, sigmas):
    """Euler and Heun in the variance-exploding view, at the recorded fractional times."""
    config = run["config"]
    nodes = SigmaView(process).at(times.double(), sigmas.double())
    if run["scheduler"].startswith("Heun"):
        return heun(process, nodes, clip=config["clip_sample_range"] if config["clip_sample"] else None)
    solver = functools.partial(euler, SigmaView(process), nodes, clip=None, **run["step_kwargs"])
    return solver(ask_after_churn=False) if run["step_kwargs"] else solver()


def plan_of(run):
    key, process = run["key"], process_of(run["config"])
    timesteps, sigmas = RECORDED[f"{key}.timesteps"], RECORDED.get(f"{key}.sigmas")
    if run["scheduler"] == "DDPMScheduler":
        return ddpm(process, timesteps)
    if run["scheduler"] == "DDIMScheduler":
        return ddim_plan(run, process, timesteps)
    if run["scheduler"].startswith("Heun"):
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        return sigma_plan(run, process, torch.cat([timesteps[:1], timesteps[1::2]]), sigmas)
    if run["scheduler"].startswith("Euler"):
        return sigma_plan(run, process, timesteps, sigmas)
    return multistep_plan(run, process, sigmas)


@pytest.mark.parametrize("key", RUNS)
def test_states_are_the_recorded_ones(backend, key):
    """float32 trajectories within 1e-4, the README's tolerance for them."""
    run, x = RUNS[key], RECORDED[f"{key}.x"]
    plan = plan_of(run)
    outputs = list(RECORDED[f"{key}.model_output"])
    if run["learned_var"] == "learned":  # diffusers means the variance itself
        outputs = [torch.cat([m[:, :3], m[:, 3:].log()], 1) for m in outputs]
    remaining, noise = iter(outputs), RECORDED["noise"]
    drawn = iter(noise)
    visited = states(plan, lambda *_: next(remaining), x[0], lambda row: next(drawn))
    assert next(remaining, None) is None and len(visited) == len(x)
    for state, expected in zip(visited, x, strict=True):
        assert error(state, expected) < 1e-4


ON_THE_GRID = [
    key for key, run in RUNS.items() if key.startswith(("dpm", "unipc")) and not run["config"]["use_karras_sigmas"]
]


@pytest.mark.parametrize("key", ON_THE_GRID)
def test_nodes_of_our_own_spacing_are_the_recorded_ones(key):
    """Integer timesteps of our spacing have diffusers' noise levels."""
    config = RUNS[key]["config"]
    trailing = config["timestep_spacing"] == "trailing"
    timesteps = spacing.trailing(1000, 10) if trailing else spacing.linspace(1000, 10, drop_first=True)
    assert timesteps.flip(0).tolist() == RECORDED[f"{key}.timesteps"].tolist()
    nodes = process_of(config).nodes(timesteps, end=0 if config["final_sigmas_type"] == "sigma_min" else None)
    torch.testing.assert_close(nodes.noise_level.float(), RECORDED[f"{key}.sigmas"], rtol=2e-4, atol=0)
    assert isinstance(nodes, Nodes) and nodes.time.dtype is torch.int64


def test_spacings_are_the_recorded_ones():
    for case in RECORDED["timestep_spacings"]:
        T, N, kind = case["T"], case["N"], case["spacing"]
        space = getattr(spacing, kind)
        assert space(T, N).flip(0).tolist() == case["ddpm"] == case["ddim"]
        dropped = space(T, N) if kind == "trailing" else space(T, N, drop_first=True)
        assert dropped.flip(0).tolist() == case["dpmsolver"] == case["unipc"]


def test_steps_offset_shifts_the_leading_spacing():
    assert spacing.leading(1000, 4, offset=1).tolist() == [1, 251, 501, 751]
