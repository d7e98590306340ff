"""Order of convergence on Gaussian data, whose probability-flow solution is known, in float64."""

import itertools
import math

import pytest
import torch

from fastdiff.processes import SigmaProcess
from fastdiff.samplers import SOLVERS
from tests.samplers.gaussian_data import DEVIATION, MEAN, line, part, propagated, row_maps

PROCESS = SigmaProcess("x0")
HIGH, LOW, X = 8.0, 0.1, 9.0  # noise levels of the run, above 0 at its end; where it starts
STEPS = (36, 72, 144, 288)  # multiples of every block of dpm_singlestep


def levels(steps):
    return torch.logspace(math.log10(HIGH), math.log10(LOW), steps + 1, dtype=torch.float64).tolist()


def solution(sigma):
    """x(sigma) = mean + (x - mean) sqrt((deviation^2 + sigma^2) / (deviation^2 + sigma_max^2))."""
    return MEAN + (X - MEAN) * math.sqrt((DEVIATION**2 + sigma**2) / (DEVIATION**2 + HIGH**2))


def error(name, sigmas, seeded, options):
    """At the end of a run, whose first `seeded` steps are the exact solution and leave its history."""
    exact = line(PROCESS)
    plan, history = SOLVERS[name](PROCESS, sigmas, clip=None, **options), [0.0] * 3
    for row, (matrix, constants) in enumerate(itertools.islice(row_maps(plan, exact), seeded)):
        slot = 1 + int(plan["write"][row])
        history[slot - 1] = matrix[slot, 0] * solution(sigmas[row]) + constants[slot]
    value, _ = propagated(part(plan, seeded), exact, solution(sigmas[seeded]), 0.0, history)
    return abs(value - solution(sigmas[-1]))


def variance_error(name, steps, options):
    plan = SOLVERS[name](PROCESS, levels(steps), clip=None, **options)
    _, variance = propagated(plan, line(PROCESS), MEAN, DEVIATION**2 + HIGH**2)
    return abs(variance - DEVIATION**2 - LOW**2)


def unipc_cases():
    for order in (1, 2, 3):
        for variant in ("bh1", "bh2"):
            options = {"order": order, "variant": variant, "lower_order_final": False}
            yield "unipc", options | {"corrector": False}, order, order - 1
            # A corrected step adds an order. The first one after the seed has no prediction to correct.
            for predict in ("x0", "eps"):
                yield "unipc", options | {"uncorrected": range(order - 1), "predict": predict}, order + 1, order - 1


# name, options, theoretical order, steps of history to seed
SEEDED = [
    ("ddim", {}, 1, 0),
    ("euler", {}, 1, 0),
    ("euler_ancestral", {"eta": 0.0}, 1, 0),
    ("heun", {}, 2, 0),
    ("dpm_2", {}, 2, 0),
    ("dpm_2_ancestral", {"eta": 0.0}, 2, 0),
    ("dpmpp_2s", {}, 2, 0),
    ("dpmpp_2s", {"r": 0.7}, 2, 0),
    ("dpmpp_sde", {"eta": 0.0}, 2, 0),
    ("lms", {"order": 2}, 2, 1),
    ("lms", {"order": 3}, 3, 2),
    ("lms", {"order": 4}, 4, 3),
    ("ipndm", {"order": 1}, 1, 0),
    ("ipndm", {"order": 2}, 2, 1),
    ("ipndm", {"order": 4}, 2, 3),
    ("dpmpp_2m", {}, 2, 1),
    ("dpmpp_2m", {"solver_type": "heun"}, 2, 1),
    ("dpmpp_3m", {"weights": "exact"}, 3, 2),
    ("dpmpp_3m", {}, 2, 2),  # as published: see fastdiff.samplers.exponential.WEIGHTS
    ("dpm_multistep", {"order": 1}, 1, 0),
    ("dpm_multistep", {"order": 2}, 2, 1),
    ("dpm_multistep", {"order": 3, "weights": "exact"}, 3, 2),
    ("dpm_multistep", {"order": 3}, 2, 2),
    *(
        ("dpm_singlestep", {"order": p, "predict": q, "solver_type": t, "lower_order_final": False}, p, 0)
        for p in (1, 2, 3) for q in ("eps", "x0") for t in ("midpoint", "heun")
    ),
    *unipc_cases(),
]  # fmt: skip


@pytest.mark.parametrize("name, options, order, seeded", SEEDED)
def test_order_with_history_of_the_exact_solution(name, options, order, seeded):
    coarse, fine = (error(name, levels(steps), seeded, options) for steps in STEPS[-2:])
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name, options, order, seeded", [case for case in SEEDED if case[2] >= 2])
def test_order_with_the_real_start(name, options, order, seeded):
    """At least 1.8 over three doublings: a first step of order 1 has an error of order h^2."""
    options = {name: value for name, value in options.items() if name != "uncorrected"}
    coarse, fine = (error(name, levels(steps), 0, options) for steps in (STEPS[0], STEPS[-1]))
    assert math.log2(coarse / fine) / 3 > 1.8


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_even_steps(order):
    """On uneven ones, even smoothly so, it has 2 at most: its weights are wrong by the change of the step."""
    grids = (torch.linspace(HIGH, 2.0, steps + 1, dtype=torch.float64).tolist() for steps in (144, 288))
    coarse, fine = (error("ipndm", sigmas, order - 1, {"order": order}) for sigmas in grids)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


# name, options, order of the variance's error
WEAK = [
    ("ddim", {"eta": 1.0}, 1),
    ("euler_ancestral", {}, 1),
    ("euler_ancestral", {"eta": 0.5}, 1),
    ("euler", {"s_churn": 20.0}, 1),
    ("heun", {"s_churn": 20.0}, 2),
    ("dpm_2", {"s_churn": 20.0}, 2),
    ("dpm_2_ancestral", {}, 2),
    ("dpmpp_2s_ancestral", {}, 2),
    ("dpmpp_sde", {}, 2),
    ("dpmpp_sde", {"eta": 0.5}, 2),
    ("dpmpp_2m_sde", {}, 2),
    ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}, 2),
    ("dpmpp_3m_sde", {}, 2),
    ("dpmpp_3m_sde", {"weights": "exact"}, 2),
    ("dpmpp_3m_sde", {"weights": "diffusers"}, 1),
    ("dpm_multistep", {"order": 1, "eta": 1.0}, 1),
    ("dpm_multistep", {"eta": 1.0}, 2),
    ("dpm_multistep", {"eta": 0.5, "solver_type": "heun"}, 2),
]


@pytest.mark.parametrize("name, options, order", WEAK)
def test_weak_order_of_solvers_with_noise(name, options, order):
    coarse, fine = (variance_error(name, steps, options) for steps in STEPS[-2:])
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_independent_noise_in_the_two_stages_of_dpmpp_sde_gives_too_small_a_variance():
    """What the recorded rows would do with a fresh draw each: the two intervals overlap."""
    plan = SOLVERS["dpmpp_sde"](PROCESS, levels(20), clip=None)
    exact, variance = line(PROCESS), DEVIATION**2 + LOW**2
    right = propagated(plan, exact, MEAN, DEVIATION**2 + HIGH**2)[1]
    independent = plan.replace(std=torch.where(plan["c_1"] != 0, whole_step_noise(plan), plan["std"]), **unshared(plan))
    wrong = propagated(independent, exact, MEAN, DEVIATION**2 + HIGH**2)[1]
    assert right == pytest.approx(variance, rel=0.01) and wrong < 0.9 * variance


def whole_step_noise(plan):
    """sigma_up of the whole step at its second row: what the shared and the new part make together."""
    shared = plan["c_x"] * plan["std"].roll(1)
    return (plan["std"].square() + shared.square()).sqrt()


def unshared(plan):
    """The columns of the two stages without the recovered draw: c_x * x, and what the base takes off for it."""
    share = plan["c_x"].roll(-1)
    first = plan["write"] == 0
    kept = {name: torch.where(first, plan[f"q_{end}"] + share * plan[f"c_{end}"], 0) for name, end in
            (("q_x", "x"), ("q_0", "0"))}  # fmt: skip
    return kept | {"c_x": torch.where(first, plan["c_x"], 0)}
