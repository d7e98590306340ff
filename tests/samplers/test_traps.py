"""Where the originals differ from one another: what ours does, and how to have theirs."""

import math

import pytest
import torch

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.data.images import to_uint8
from fastdiff.processes import SigmaProcess, spacing
from fastdiff.samplers import SOLVERS, Plan, ddim, ddpm
from fastdiff.samplers.solvers import OF_NODES
from tests.processes.golden import error, load
from tests.samplers.runs import states

LINEAR = schedules.linear(1000)


def test_log_posterior_variance_at_t_0_is_that_of_t_1():
    """OpenAI's clip; diffusers and lucidrains take log 1e-20. No plan reads it: the last step adds no noise."""
    process = GaussianProcess(LINEAR, variance="learned_range")
    assert process.posterior_log_variance_clipped[0] == process.posterior_log_variance_clipped[1]
    assert process.l_0[0].isfinite() and process.l_1[0].isfinite() and ddpm(process)["std"][-1] == 0
    x, m = torch.ones(1, 1, 2, 2), torch.cat([torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), math.nan)], 1)
    assert ops.reverse_step(x, m[:, :1], ddpm(GaussianProcess(LINEAR)).table(), torch.tensor(999)).isfinite().all()


def test_fixed_large_at_t_0_is_the_posterior_variance_of_t_1():
    """As in TF and OpenAI; diffusers has betas[0] there, and neither adds noise at that step."""
    process = GaussianProcess(LINEAR, variance="fixed_large")
    assert process.model_variance[0] == pytest.approx(process.posterior_variance[1].item(), rel=1e-14)
    assert ddpm(process)["std"][-1] == 0


@pytest.mark.parametrize("name", OF_NODES)
def test_x0_is_clipped_to_1_by_default_and_not_at_all_for_None(name):
    """OpenAI, diffusers and lucidrains clip, EDM does not."""
    process = GaussianProcess(schedules.linear(100))
    for clip, bound in ((None, math.inf), (0.7, 0.7)):
        plan = SOLVERS[name](process, 6, clip=clip)
        assert {plan["bound"][row].item() for row in range(len(plan)) if plan.call[row]} == {bound}
    assert (SOLVERS[name](process, 6)["bound"][-1]) == 1


def test_timesteps_that_the_network_is_fed():
    """Integers of the whole process; log(sigma) / 4 for EDM's networks. t * 1000 / T is the network's own affair."""
    assert ddim(GaussianProcess(schedules.linear(4000)), 3).time.tolist() == [3999, 2000, 0]
    assert ddim(GaussianProcess(schedules.linear(4000)), 3).time.dtype is torch.int64
    assert ddim(SigmaProcess(), [4.0, 2.0, 0.0]).time.tolist() == pytest.approx([math.log(4) / 4, math.log(2) / 4])


def test_strides_with_and_without_the_last_timestep():
    """OpenAI's "10" reaches T - 1, its "ddim10" and diffusers' leading do not; trailing reaches it, but not t = 0."""
    process = GaussianProcess(LINEAR)
    assert process.nodes("10").time.tolist()[::9] == [999, 0]
    assert process.nodes("ddim10").time.tolist()[::9] == [900, 0]
    assert spacing.leading(1000, 10)[[0, -1]].tolist() == [0, 900]
    assert spacing.trailing(1000, 10)[[0, -1]].tolist() == [99, 999]
    assert spacing.linspace(1000, 10)[[0, -1]].tolist() == [0, 999]


def test_the_previous_timestep_of_diffusers_ddim_is_a_stride_away():
    """t - T // S whatever comes next: with its linspace spacing the steps overlap. Ours end at the next timestep."""
    process, timesteps = GaussianProcess(LINEAR), spacing.linspace(1000, 10)
    plan = ddim(process, timesteps)
    assert plan["c_0"][0] != ddim(process, process.nodes([999], end=899))["c_0"][0]
    whole = process.nodes(timesteps)
    assert whole.alpha[1] == pytest.approx(process.alpha[888].item(), rel=1e-12)


def test_tables_are_float64_and_rounded_once():
    """diffusers' are float32 throughout, which costs 1 - alphas_cumprod[0] four digits."""
    plan = ddim(GaussianProcess(LINEAR), 50)
    assert plan.rows.dtype is torch.float64 and plan.table().dtype is torch.float32
    peer = torch.cumprod(1 - LINEAR.float(), 0)
    assert abs((1 - peer[0]).item() / 1e-4 - 1) > 1e-5 and GaussianProcess(LINEAR).sigma[0] ** 2 == pytest.approx(1e-4)


def test_betas_scale_with_T_in_openai_and_lucidrains_alone():
    short, long = (GaussianProcess(schedules.linear(T)).alphas_cumprod[-1].item() for T in (250, 1000))
    raw = GaussianProcess(schedules.linear(250, scaled=False)).alphas_cumprod[-1].item()
    assert 0.5 < short / long < 2 and raw > 1000 * long


def test_learned_means_the_log_variance():
    """OpenAI's; diffusers' "learned" is the variance itself, whose logarithm these rows take."""
    plan = ddpm(GaussianProcess(LINEAR, variance="learned"))
    assert set(plan["l_0"].tolist()) == {0.0} and set(plan["l_1"].tolist()) == {1.0}


def test_ddim_clips_x0_and_eps_or_x0_alone():
    """OpenAI derives eps from the clipped x0; diffusers keeps the network's unless use_clipped_model_output."""
    process = GaussianProcess(LINEAR)
    derived, raw = ddim(process, 10), ddim(process, 10, clipped_eps=False)
    assert (derived["c_m"] == 0).all() and (raw["c_m"][:-1] != 0).all()
    unclipped = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.05, dtype=torch.float64)
    for row in (5, 9):
        one, other = (ops.reverse_step(*unclipped, plan.table(dtype=torch.float64), torch.tensor(row))
                      for plan in (derived.replace(bound=math.inf), raw.replace(bound=math.inf)))  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_xprev_is_the_mean_whatever_the_clip():
    plan = ddpm(GaussianProcess(LINEAR, "xprev"), 10)
    assert set(plan["c_m"].tolist()) == {1.0} and (plan["c_0"] == 0).all() and (plan["c_x"] == 0).all()


def test_bytes_are_rounded_where_openai_truncates():
    """As diffusers does: the brightest 1 / 255 of [-1, 1] is 255. Bytes come in as u / 127.5 - 1, as OpenAI has it."""
    x = torch.tensor([-1.0, -0.997, 0.0, 0.997, 1.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255]
    assert ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).tolist() == [0, 0, 127, 254, 255]
    u = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    x_t = GaussianProcess(LINEAR).q_sample(u, torch.tensor([0]), torch.zeros(1, 1, 1, 3), dtype=torch.float32)
    expected = GaussianProcess(LINEAR).alpha[0].float() * torch.tensor([-1, -0.6, 1])
    torch.testing.assert_close(x_t.flatten(), expected, rtol=1e-6, atol=1e-6)


# ---- lucidrains ----

LUCIDRAINS = load("lucidrains")
KINDS = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
CASES = {case["key"]: case for case in LUCIDRAINS["cases"]}


def lucidrains_network(x, t):
    a, b = (LUCIDRAINS[f"model.{name}"].to(x.dtype).view(1, -1, 1, 1) for name in "ab")
    return a * x + b * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1) + 0.1 * torch.tanh(x.roll(-1, 1))


def lucidrains_process(case):
    return GaussianProcess(getattr(schedules, case["beta_schedule"])(100), KINDS[case["objective"]])


@pytest.mark.parametrize("key", CASES)
def test_ancestral_steps_of_lucidrains(backend, key):
    plan, x = ddpm(lucidrains_process(CASES[key])), LUCIDRAINS[f"{key}.x_t"]
    for t in (0, 1, 50, 99):
        output = lucidrains_network(x, torch.full((len(x),), t))
        noise = LUCIDRAINS["step_noise"][0]
        stepped = ops.reverse_step(x, output, plan.table(), torch.tensor(99 - t), noise=noise)
        assert error(stepped, LUCIDRAINS[f"{key}.p_sample.t{t}"]) < 1e-6


@pytest.mark.parametrize("eta", ["0.0", "0.7"])
@pytest.mark.parametrize("key", CASES)
def test_ddim_of_lucidrains_takes_int_of_linspace_from_minus_1(backend, key, eta):
    times = torch.linspace(-1, 99, 11).int().tolist()
    plan = ddim(lucidrains_process(CASES[key]), times[1:], eta=float(eta))
    noise = LUCIDRAINS["step_noise"]
    visited = states(plan, lucidrains_network, LUCIDRAINS["x_T"], lambda row: noise[row])
    recorded = LUCIDRAINS[f"{key}.ddim.S10.eta{eta}"].transpose(0, 1)
    for x, expected in zip(visited, recorded, strict=True):
        assert error((x + 1) / 2, expected) < 2e-6


def test_blocks_of_dpm_singlestep_end_at_the_last_point_before_clean_data():
    """A row that keeps x for each block of more than one step; the step to clean data is a block of its own."""
    process = GaussianProcess(LINEAR)
    for steps, lower, blocks in ((6, True, 2), (8, True, 2), (6, False, 2), (5, False, 1), (4, False, 1)):
        plan = SOLVERS["dpm_singlestep"](process, steps, lower_order_final=lower)
        assert plan.call.count(True) == steps and plan.call.count(False) == blocks
        assert plan["c_0"][-1] == 1 and plan["c_1"][-1] == 0


# ---- What solvers refuse ----


@pytest.mark.parametrize("name, options, message", [
    ("lms", {"order": 5}, "order must be one of 1, 2, 3, 4, got 5"),
    ("ipndm", {"order": 0}, "order must be one of 1, 2, 3, 4, got 0"),
    ("unipc", {"order": 4}, "order must be one of 1, 2, 3, got 4"),
    ("unipc", {"variant": "bh3"}, "variant must be one of bh1, bh2, got 'bh3'"),
    ("unipc", {"predict": "v"}, "predict must be one of x0, eps, got 'v'"),
    ("dpmpp_2m", {"solver_type": "euler"}, "solver_type must be one of midpoint, heun, got 'euler'"),
    ("dpmpp_3m", {"weights": "wrong"}, "weights must be one of published, exact, diffusers, got 'wrong'"),
    ("dpm_multistep", {"order": 0}, "order must be one of 1, 2, 3, got 0"),
    ("dpm_singlestep", {"order": 4}, "order must be one of 1, 2, 3, got 4"),
    ("dpm_singlestep", {"predict": "v"}, "predict must be one of eps, x0, got 'v'"),
    ("ddim", {"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
    ("euler_ancestral", {"eta": -1}, "eta must be at least 0, got -1"),
    ("dpm_2_ancestral", {"s_noise": -1}, "s_noise must be at least 0, got -1"),
    ("dpmpp_sde", {"r": 2}, r"r must be in \(0, 1\], got 2"),
    ("dpmpp_2s", {"r": 0}, r"r must be in \(0, 1\], got 0"),
    ("dpmpp_2m_sde", {"eta": math.nan}, "eta must be at least 0, got nan"),
    ("heun", {"s_churn": -1}, "s_churn must be at least 0, got -1"),
    ("euler", {"s_churn": -1}, "s_churn must be at least 0, got -1"),
    ("ddim", {"timesteps": 0}, r"steps must be an int in \[1, 1000\], got 0"),
])  # fmt: skip
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        SOLVERS[name](GaussianProcess(LINEAR), **{"timesteps": 10, **options})


@pytest.mark.parametrize("name, options", [
    ("heun", {}), ("dpm_2", {}), ("dpm_2_ancestral", {}), ("lms", {}), ("ipndm", {}), ("dpmpp_2s", {}),
    ("dpmpp_sde", {}), ("unipc", {}), ("dpm_multistep", {}), ("dpm_singlestep", {}), ("euler", {"s_churn": 1.0}),
])  # fmt: skip
def test_zero_terminal_snr_is_refused_by_solvers_in_the_noise_level(name, options):
    """Which is infinite there."""
    process = GaussianProcess(schedules.zero_terminal_snr(LINEAR), "v")
    with pytest.raises(ValueError, match=r"process must have alpha above 0 at every timestep for this .* got 0 at 999"):
        SOLVERS[name](process, 10, **options)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde"])
def test_zero_terminal_snr_is_taken_by_solvers_in_alpha_and_sigma(name):
    process = GaussianProcess(schedules.zero_terminal_snr(LINEAR), "v")
    plan = SOLVERS[name](process, 10)
    assert isinstance(plan, Plan) and plan.rows[:, :3].isfinite().all() and plan["p_m"][0] == -1
