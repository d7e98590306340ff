"""Numbers recorded by running score_sde_pytorch (commit cb1f359), and the exact predictions of its Gaussian data."""

from fastdiff.processes import VESDE, VPSDE, SubVPSDE
from tests.processes.golden import load
from tests.samplers.known import Gaussian

PROCESSES = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
SIGMA_MAX = 50


def recorded(kind=None, **options):
    """(arrays, the process, the state as it was used, the data), or the arrays alone."""
    arrays = load("score_sde")
    if kind is None:
        return arrays
    x = arrays["x"] * (0.3 * SIGMA_MAX if kind == "ve" else 1)
    return arrays, PROCESSES[kind](**options), x, Gaussian(arrays["gaussian.mean"], arrays["gaussian.std"])
