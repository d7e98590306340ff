"""Networks as k-diffusion's denoisers, D(x, sigma) = E[x_0 | x = x_0 + sigma * noise], and denoisers as networks."""

import torch
from torch import nn

from ..processes import GaussianProcess, SigmaProcess, SigmaView
from ..samplers.network import tensor_of


class Denoiser(nn.Module):
    """D(x, sigma) = p_x * x + p_m * model(c_in * x, time), sigma [B]: K.external's wrappers, and EDM's preconditioning.

    Args:
        model: model(x, time, **kwargs) -> [B, C or 2C, *], of which the first C channels count; it may lie in a
            tuple, a dict or an object's `.sample`.
        process: `fastdiff.GaussianProcess`, the network's (eps or v: DiscreteEpsDDPMDenoiser and DiscreteVDDPMDenoiser;
            any prediction but xprev), or `fastdiff.processes.SigmaProcess` ("v", sigma_data=1: VDenoiser).
        quantize: of a GaussianProcess: feed the nearest integer timestep, not a fraction.

    Attributes: model, view (the process that noise levels are looked up in), sigma_min, sigma_max.
    """

    def __init__(self, model, process, quantize=False):
        super().__init__()
        self.model = model
        self.view = SigmaView(process, quantize) if isinstance(process, GaussianProcess) else process
        self.sigma_min, self.sigma_max = self.view.sigma_min, self.view.sigma_max

    def forward(self, x, sigma, **kwargs):
        nodes, place = self._nodes(sigma)
        p_x, p_m, c_in = (
            value[place].to(x.device, x.dtype).view(-1, *(1,) * (x.dim() - 1))
            for value in (nodes.p_x, nodes.p_m, nodes.c_in)
        )
        output = tensor_of(self.model(c_in * x, self._fed(nodes, place, sigma), **kwargs))
        return p_x * x + p_m * output[:, : x.shape[1]]

    def sigma_to_t(self, sigma):
        """What the network is fed at these noise levels, like sigma; int64 where quantized."""
        nodes, place = self._nodes(sigma)
        return self._fed(nodes, place, sigma).view(sigma.shape)

    def get_sigmas(self, n=None):
        """Noise levels [n + 1] for a run, float32, the last of them 0; n = None: of every timestep."""
        return self.view.nodes(n).noise_level.float()

    def _nodes(self, sigma):
        """The points of the distinct levels, and where among them each of sigma is."""
        levels, place = sigma.detach().double().cpu().flatten().unique(return_inverse=True)
        ended = torch.cat([levels.flip(0), torch.zeros(1, dtype=torch.float64)])
        return self.view.through(ended), len(levels) - 1 - place

    def _fed(self, nodes, place, sigma):
        time = nodes.time[place]
        return time.to(sigma.device, sigma.dtype if time.is_floating_point() else torch.int64)


def as_model(denoiser, sigma_min=None, sigma_max=None):
    """(model, process) for `fastdiff.Sampler` of a denoiser(x, sigma, **kwargs) of k-diffusion's.

    sigma_min, sigma_max: the range of runs given by their number of steps; None: the denoiser's own.
    """
    low = denoiser.sigma_min if sigma_min is None else sigma_min
    high = denoiser.sigma_max if sigma_max is None else sigma_max
    return denoiser, SigmaProcess("x0", sigma_min=float(low), sigma_max=float(high))
