"""Plans of diffusers' schedulers, read from their config and timesteps."""

import functools
import math

import torch

from .. import ops
from ..processes import GaussianProcess
from ..samplers import SOLVERS, DynamicThreshold, Plan, ddim, ddpm, dpm_multistep

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large",
    "learned": "learned", "learned_range": "learned_range", None: "fixed_small",
}  # fmt: skip


def process_of(scheduler):
    """The GaussianProcess of a scheduler's betas, prediction_type and variance_type."""
    config = scheduler.config
    prediction, variance = config.get("prediction_type", "epsilon"), config.get("variance_type")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {', '.join(_PREDICTIONS)}, got {prediction!r}")
    if variance not in _VARIANCES:
        raise ValueError(f"variance_type must be one of {', '.join(filter(None, _VARIANCES))}, got {variance!r}")
    return GaussianProcess(scheduler.betas.double(), _PREDICTIONS[prediction], _VARIANCES[variance])


def clip_of(config):
    """What bounds x0: DynamicThreshold, a number, or None."""
    if config.get("thresholding"):
        return DynamicThreshold(config["dynamic_thresholding_ratio"], config["sample_max_value"])
    return config["clip_sample_range"] if config.get("clip_sample") else None


def ddpm_plan(scheduler):
    """One row per timestep; the last adds noise where it is not t = 0, as diffusers does with trailing timesteps."""
    process, clip = process_of(scheduler).respace(scheduler.timesteps), _number(clip_of(scheduler.config))
    plan = ddpm(process, clip=clip)
    if scheduler.timesteps[-1] == 0:
        return plan
    last = {name: plan[name].clone() for name in ("std", "l_0", "l_1")}
    floor, ceiling = math.log(1e-20), process.betas[0].log()
    last["std"][-1] = {"fixed_small": 1e-10, "fixed_large": process.betas[0].sqrt()}.get(process.variance, 1.0)
    if process.variance == "learned_range":
        last["l_0"][-1], last["l_1"][-1] = (ceiling + floor) / 2, (ceiling - floor) / 2
    return plan.replace(**last)


def ddim_plan(scheduler, eta, clipped):
    """One row per timestep: from t to t - T // S, whatever comes next in the list."""
    config, process = scheduler.config, process_of(scheduler)
    stride, plans = config.num_train_timesteps // scheduler.num_inference_steps, []
    for t in scheduler.timesteps.tolist():
        before = t - stride
        to_data = before < 0 and config.set_alpha_to_one
        nodes = process.nodes([t], end=None if to_data else max(before, 0))
        plans.append(ddim(process, nodes, clip=_number(clip_of(config)), eta=eta, clipped_eps=clipped))
    names = ("p_x", "p_m", "bound", "c_x", "c_0", "c_m", "std")
    return Plan(scheduler.timesteps, **{name: [plan[name][0].item() for plan in plans] for name in names})


def multistep_plan(scheduler, first):
    """DPM-Solver and DPM-Solver++ through the scheduler's noise levels from number `first` on."""
    config, process = scheduler.config, process_of(scheduler)
    algorithm, order, short = config.algorithm_type, config.solver_order, len(scheduler.timesteps) < 15
    if config.get("use_flow_sigmas"):
        raise ValueError("use_flow_sigmas must be False, got True")
    lower = (config.lower_order_final and short) or ("euler" if config.euler_at_final else False)
    nodes, noisy = _through(process, scheduler.sigmas[first:]), float(algorithm.startswith("sde"))
    if order == 1 and algorithm.endswith("++"):
        return ddim(process, nodes, clip=None, eta=noisy)
    options = {"clip": None, "solver_type": config.solver_type, "lower_order_final": lower}
    if not algorithm.endswith("++"):
        return dpm_multistep(process, nodes, order=order, eta=noisy, **options)
    if algorithm == "sde-dpmsolver++" and order == 3:
        options["weights"] = "diffusers"
    solver = f"dpmpp_{order}m" + "_sde" * algorithm.startswith("sde")
    return functools.partial(SOLVERS[solver], process, nodes)(**options)


def _through(process, levels):
    """The points of noise levels, the last of which Karras' and others have twice where they do not end at 0."""
    if levels[-1] < levels[-2]:
        return process.through(levels)
    nodes = process.through(torch.cat([levels[:-1], levels.new_zeros(1)]))
    alpha, sigma = (torch.cat([value[:-1], value[-2:-1]]) for value in (nodes.alpha, nodes.sigma))
    return nodes._replace(alpha=alpha, sigma=sigma)


def _number(clip):
    return 1.0 if isinstance(clip, DynamicThreshold) else clip


class PlanRun:
    """A plan's rows on states that a pipeline keeps, and the history between them."""

    def __init__(self, plan, config):
        clip = clip_of(config)
        self.plan, self.threshold = plan, clip if isinstance(clip, DynamicThreshold) else None
        self.estimates = plan.estimates()
        self.raw = self.estimates.replace(bound=float("inf"))
        self.history, self._tables = None, {}

    @torch.no_grad()
    def step(self, row, x, model_output, noise):
        """(x after the row, its estimate of x_0), each like x."""
        place, terms = torch.tensor(row, device=x.device), {}
        if self.threshold is not None:
            x0 = ops.reverse_step(x, model_output, self._table("raw", x), place)
            terms["bound"], terms["shrink"] = self.threshold(x0.float())
        if self.plan.multistep and (self.history is None or row == 0):
            self.history = x.new_zeros(3, *x.shape)
        x0 = ops.reverse_step(x, model_output, self._table("estimates", x), place, **terms)
        after = ops.reverse_step(
            x, model_output, self._table("plan", x), place, history=self.history, noise=noise, **terms
        )
        return after, x0

    def _table(self, name, x):
        key = name, x.device, torch.float64 if x.dtype is torch.float64 else torch.float32
        if key not in self._tables:
            self._tables[key] = getattr(self, name).table(*key[1:])
        return self._tables[key]
