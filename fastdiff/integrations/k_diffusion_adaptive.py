"""k-diffusion's solver that chooses its own steps, on ours."""

import torch
from tqdm.auto import tqdm

from ..processes import VESDE
from ..samplers import DPMAdaptive


@torch.no_grad()
def sample_dpm_adaptive(
    model, x, sigma_min, sigma_max, extra_args=None, callback=None, disable=None, order=3, rtol=0.05, atol=0.0078,
    h_init=0.05, pcoeff=0.0, icoeff=1.0, dcoeff=0.0, accept_safety=0.81, eta=0.0, s_noise=1.0, noise_sampler=None,
    return_info=False,
):  # fmt: skip
    """`fastdiff.samplers.DPMAdaptive` from x at sigma_max to sigma_min, with one error over the whole batch.

    Returns x, or (x, {"steps", "nfe", "n_accept", "n_reject"}) with return_info. One draw of noise for each accepted
    step, whatever eta. callback gets, after each attempted step, these four and {"x", "i", "t" and "t_up" (both
    -log sigma of x), "sigma", "sigma_hat", "denoised" (at the step's beginning), "error", "h" (the next)}.
    """
    if sigma_min <= 0 or sigma_max <= 0:
        raise ValueError(f"sigma_min and sigma_max must be above 0, got {sigma_min} and {sigma_max}")
    process = VESDE(float(sigma_min), float(sigma_max), prediction="x0", t_min=1e-14)
    solver = DPMAdaptive(
        process, order=order, rtol=rtol, atol=atol, h_init=h_init, pcoeff=pcoeff, icoeff=icoeff, dcoeff=dcoeff,
        accept_safety=accept_safety, eta=eta, s_noise=s_noise, norms="batch",
    )  # fmt: skip
    bar, info = tqdm(disable=disable), dict.fromkeys(("steps", "nfe", "n_accept", "n_reject"), 0)

    def denoise(x, t):
        bar.update()
        return model(x, process.sigma(t).to(x.dtype), **(extra_args or {}))

    def noise(attempt, before, end, accepted):
        if not accepted[0]:
            return torch.zeros_like(x)
        if noise_sampler is None:
            return torch.randn_like(x)
        return noise_sampler(*(torch.exp(-lam[0]).to(x.dtype) for lam in (before, end)))

    for attempt in solver.attempts(denoise, x, noise):
        x, accepted = attempt.x, attempt.accepted[0].item()
        info["n_accept"] += accepted
        info["n_reject"] += not accepted
        info["nfe"] += order
        info["steps"] += 1
        if callback is not None:
            callback({**_seen(attempt), "i": info["steps"] - 1, **info})
    bar.close()
    return (x, info) if return_info else x


def _seen(attempt):
    x, t = attempt.x, attempt.lam[0].to(attempt.x.dtype)
    level = torch.exp(-t)
    places = {"t": t, "t_up": t, "sigma": level, "sigma_hat": level}
    return {"x": x, "denoised": attempt.x0, "error": attempt.error[0], "h": attempt.h[0], **places}
