"""Any EMA length after training, from snapshots of a few."""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import whole
from .profiles import Power
from .sharding import on_cpu

SNAPSHOTS = "snapshots"


def save_snapshot(directory, ema, write=True):
    """Writes every `Power` average of the moment, in float16, to snapshots/<updates>-<sigma_rel>.safetensors.

    All ranks call this together, of which one has `write`.
    """
    folder = Path(directory) / SNAPSHOTS
    if write:
        folder.mkdir(exist_ok=True)
    for profile, average in zip(ema.profiles, ema.averages, strict=True):
        if isinstance(profile, Power):
            values = {name: v.half() if v.is_floating_point() else v for name, v in average.items()}
            values = on_cpu(values, write)
            if not write:
                continue
            with whole(folder / f"{ema.updates:08d}-{profile.sigma_rel:.4f}.safetensors") as part:
                save_file(values, part)


def snapshots(directory):
    """[(updates, Power, path)] of a run, in order."""
    found = []
    for path in sorted((Path(directory) / SNAPSHOTS).glob("*.safetensors")):
        match = re.fullmatch(r"(\d+)-(\d+\.\d+)\.safetensors", path.name)
        if match:
            found.append((int(match[1]), Power(float(match[2])), path))
    return found


def inner_product(t_a, gamma_a, t_b, gamma_b):
    """(gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) * r^g / max(t_a, t_b), r the smaller t over the larger.

    g is the gamma of the larger t. It is the integral of p_a(tau) p_b(tau), where a profile weighs the past by p(tau) =
    (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Source: Karras et al. 2024, appendix C.3.
    """
    t_a, gamma_a, t_b, gamma_b = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b)))
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    power = np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**power / np.maximum(t_a, t_b)


def coefficients(times, gammas, time, gamma):
    """The weights [K] of K snapshots whose sum comes nearest, in least squares, to the profile (time, gamma)."""
    times, gammas = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    A = inner_product(times[:, None], gammas[:, None], times[None], gammas[None])
    return np.linalg.lstsq(A, inner_product(times, gammas, time, gamma), rcond=None)[0]


def reconstruct(directory, sigma_rel, updates=None):
    """The average of profile Power(sigma_rel) after `updates` (None: at the last snapshot), float32 by name.

    Only snapshots up to then take part, the last of them of that moment: later weights are in none. Raises
    FileNotFoundError where there are none, ValueError where updates is no snapshot's or sigma_rel is out of range.
    Source: Karras et al. 2024, section 3.2.
    """
    gamma = Power(sigma_rel).gamma
    found = snapshots(directory)
    if not found:
        raise FileNotFoundError(f"run must hold {SNAPSHOTS} of Power averages, got none in {str(directory)!r}")
    moments = sorted({t for t, _, _ in found})
    updates = moments[-1] if updates is None else updates
    if updates not in moments:
        raise ValueError(f"updates must be those of a snapshot, {', '.join(map(str, moments))}, got {updates}")
    found = [entry for entry in found if entry[0] <= updates]
    shares = coefficients([t for t, _, _ in found], [p.gamma for _, p, _ in found], updates, gamma)
    total = {}
    for share, (_, _, path) in zip(shares, found, strict=True):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                value = file.get_tensor(name)
                if not value.is_floating_point():
                    total[name] = value  # a count: the last one's
                else:
                    total[name] = total.get(name, torch.zeros(())) + share * value.double()
    return {name: value.float() if value.is_floating_point() else value for name, value in total.items()}
