"""The tables that a discrete process is given, checked."""

import torch


def checked_betas(betas):
    """Betas as float64 [T] of its own."""
    try:
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"betas must be an array of numbers, got {type(betas).__name__}") from error
    if betas.dim() != 1 or len(betas) == 0:
        raise ValueError(f"betas must have shape [T] with T at least 1, got {list(betas.shape)}")
    wrong = ~((betas > 0) & (betas <= 1))
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise ValueError(f"betas must be in (0, 1], got {betas[t].item()} at t = {t}")
    return betas


def checked_map(timestep_map, T):
    """The original timesteps as int64 [T] of its own; None: 0..T-1."""
    if timestep_map is None:
        return torch.arange(T, device="cpu")
    timestep_map = torch.as_tensor(timestep_map, device="cpu").clone()
    if timestep_map.shape != (T,) or timestep_map.dtype is not torch.int64:
        got = f"{timestep_map.dtype} of shape {list(timestep_map.shape)}"
        raise ValueError(f"timestep_map must be int64 of shape [{T}], got {got}")
    return timestep_map
