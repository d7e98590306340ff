"""What a network is trained to: the loss of each sample of a batch, through the fused losses."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..ops import diffusion_loss

OBJECTIVES = ("simple", "hybrid", "vlb")
WEIGHTINGS = ("uniform", "snr", "min-snr")


class Batch(NamedTuple):
    """What a step trains on; noise is not among it, for it is made again from its counters."""

    x_start: torch.Tensor  # uint8 [B, C, H, W]
    x_t: torch.Tensor  # what the network is fed
    t: torch.Tensor  # [B], int64 timesteps, or float64 times of a process in continuous time
    time: torch.Tensor  # [B], what the network is told of t
    rng: torch.Tensor  # int64 [2]: seed, step
    sample_ids: torch.Tensor  # int64 [B]: places in the global batch
    flip: torch.Tensor | None  # bool [B]
    labels: torch.Tensor | None  # int64 [B]
    weight: torch.Tensor | None  # float32 [B]: 1 / (T p(t)), or None where timesteps are uniform


@dataclass(frozen=True)
class Objective:
    """loss[b] of a sample, from the network's output.

        simple: weight(t) * mean((m - target)^2)
        vlb:    T * L_t, L_t the variational bound's term in bits per dimension; its mean over t is the bound
        hybrid: simple + 0.001 * T * L_t, where L_t sends no gradient to the mean

    T is the number of timesteps; it belongs to the bound since one t of T is drawn. weighting of `simple`: "uniform":
    none; "snr": 1 for eps, snr for x0, snr / (snr + 1) for v, with which all three weigh the error of eps alike;
    "min-snr": that times min(snr, gamma) / snr.
    Source: Ho et al. 2020, equations 5 and 14; Nichol and Dhariwal, "Improved denoising diffusion probabilistic
    models", 2021, equation 16 (lambda = 0.001); Hang et al., "Efficient diffusion training via min-SNR weighting
    strategy", 2023.

    Where the score is predicted, of noise levels or in continuous time, `simple` is denoising score matching with
    lambda = sigma^2, mean((sigma m + eps)^2). Source: Song and Ermon, "Generative modeling by estimating gradients of
    the data distribution", 2019, equations 5 and 6; Song et al. 2021, equation 7.

    Args:
        process: `fastdiff.GaussianProcess`, or a process in continuous time or of noise levels, for `simple` alone.
        kind: one of `OBJECTIVES`.
        weighting: one of `WEIGHTINGS`.
        gamma: of min-snr.

    Raises ValueError that names the argument.
    """

    process: object
    kind: str = "simple"
    weighting: str = "uniform"
    gamma: float = 5.0

    def __post_init__(self):
        if self.kind not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.kind!r}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")
        variance = getattr(self.process, "variance", None)
        if self.kind != "simple" and variance is None:
            raise ValueError(f"objective must be simple for a {type(self.process).__name__}, got {self.kind!r}")
        learned = variance in ("learned", "learned_range")
        if self.kind == "simple" and learned:
            raise ValueError(f"objective must be hybrid or vlb where variance is {variance}, got 'simple'")
        if self.kind == "hybrid" and not learned:
            raise ValueError(f"objective must be simple or vlb where variance is {variance}, got 'hybrid'")
        if self.kind == "vlb" and self.weighting != "uniform":
            raise ValueError(f"weighting must be uniform where objective is vlb, got {self.weighting!r}")
        if self.weighting != "uniform" and self.process.prediction not in _AS_EPS:
            kinds = ", ".join(_AS_EPS)
            raise ValueError(f"weighting must be uniform but for {kinds}, got {self.weighting!r}")

    def __call__(self, output, batch):
        """[B] float32, before importance weights."""
        if self.kind == "vlb":
            return self.process.num_timesteps * self._bound(output, batch)
        loss = self._squared_error(output, batch)
        if self.kind == "simple":
            return loss
        return loss + 0.001 * self.process.num_timesteps * self._bound(output, batch, detach_mean=True)

    def _squared_error(self, output, batch):
        process = self.process
        options = {"rng": batch.rng, "sample_ids": batch.sample_ids, "flip": batch.flip}
        if hasattr(process, "loss"):  # the tables of its timesteps
            weight = None if self.weighting == "uniform" else self._table(output.device)
            return process.loss(output, batch.x_start, batch.t, weight=weight, **options)
        a, b, alpha, sigma = self._continuous(batch.t)
        places = torch.arange(len(a), device=a.device)
        weight = self._weights(alpha, sigma)
        return diffusion_loss(output, batch.x_start, places, a.float(), b.float(), weight=weight, **options)

    def _continuous(self, t):
        """(a, b) of the target a * x_0 + b * eps, alpha and sigma, each float64 [B]."""
        process = self.process
        if hasattr(process, "line"):
            return *process.line(t), process.alpha(t), process.sigma(t)
        names = "target_x0", "target_eps", "alpha", "sigma"
        return tuple(process.table(name, t.device, torch.float64)[t] for name in names)

    def _bound(self, output, batch, **options):
        return self.process.vlb_terms(output, batch.x_start, batch.x_t, batch.t, flip=batch.flip, **options)

    def _table(self, device):
        """The weight of each timestep, [T] float32."""
        snr = self.process.table("snr", device, torch.float64)
        return _weight(self.process.prediction, snr, self.weighting, self.gamma).float()

    def _weights(self, alpha, sigma):
        """Those of these samples [B]: lambda = sigma^2 of denoising score matching where the score is predicted."""
        if self.process.prediction == "score":
            return (sigma**2).float()
        if self.weighting == "uniform":
            return None
        return _weight(self.process.prediction, (alpha / sigma) ** 2, self.weighting, self.gamma).float()


# The squared error of eps is this times that of what is predicted.
_AS_EPS = {"eps": torch.ones_like, "x0": lambda snr: snr, "v": lambda snr: snr / (snr + 1)}


def _weight(prediction, snr, weighting, gamma):
    if weighting == "min-snr":
        cut = (gamma / snr).clamp(max=1)  # where snr is 0 too
        return cut * _AS_EPS[prediction](snr)
    return _AS_EPS[prediction](snr)
