"""One batch of a solver that chooses its own steps, and so has no plan."""

import torch

from .. import ops
from . import network
from .conditions import arguments
from .guidance import Classifier, ClassifierFree
from .thresholding import DynamicThreshold


class FreeRun:
    """What such a solver is given: a state x [B, C, *], denoise(x, t) -> x0 like x, draw(k) -> standard normals like x.

    The solver's process says what the network is fed at its times t [B], `c_in(t)` * x and `label(t)`, and what its
    output means, `predict_x0(x, t, output)`. Guidance and thresholds act on x0 as they do in a plan.
    """

    def __init__(self, sampler, shape, B):
        self.sampler, self.solver, self.shape, self.B = sampler, sampler.plan, shape, B
        self.device, self.dtype = network.locate(sampler.model, sampler.device)
        network.check_precision(sampler.precision, self.dtype)  # the model may have changed
        self.memory_format = getattr(sampler.model, "memory_format", torch.contiguous_format)
        if isinstance(sampler.guidance, Classifier) and sampler.guidance.form != "score":
            raise ValueError("guidance must be of form score where a solver chooses its own steps, got 'mean'")
        if isinstance(sampler.guidance, ClassifierFree) and sampler.guidance.each:
            raise ValueError("guidance's w must be a number where a solver chooses its own steps, got several")

    def begin(self, seed, sample_ids, *, condition, x=None, start=None):
        self.rng = ops.rng.make_rng(seed, device="cpu").to(self.device, non_blocking=True)
        self.sample_ids = torch.tensor(sample_ids, dtype=torch.int64, device="cpu").to(self.device, non_blocking=True)
        self.condition = condition
        self.x = self.solver.start * self._normal(ops.rng.INITIAL) if x is None else x.clone()

    def finish(self, progress):
        """The solver's whole way; progress(fraction) is called as it goes."""
        self.x = self.solver.run(self.denoise, self.x, self.draw, progress)

    def draw(self, k):
        rng = torch.cat([self.rng[:1], torch.full_like(self.rng[:1], k)])
        return self._normal(ops.rng.STEP, rng).to(self.x.dtype)

    def denoise(self, x, t):
        process, guidance = self.solver.process, self.sampler.guidance
        time = process.label(t)
        time = time.to(torch.float32) if time.is_floating_point() else time
        guided = isinstance(guidance, ClassifierFree) and self.sampler.guided
        fed = (self._like(process.c_in(t), x) * x).to(self.dtype or torch.float32, memory_format=self.memory_format)
        positional, keywords = arguments(self.condition)
        halves = (torch.cat([value, value]) if guided else value for value in (fed, time))
        output = network.tensor_of(self.sampler.model(*halves, *positional, **keywords))
        output = self._guided(output, time) if guided else output[:, : self.shape[0]]
        x0 = self._bounded(process.predict_x0(x, t, output.to(x.dtype)))
        return self._classified(x0, fed, time, t) if isinstance(guidance, Classifier) else x0

    def _normal(self, stream, rng=None):
        shape, rng = (self.B, *self.shape), self.rng if rng is None else rng
        return ops.normal(shape, rng, self.sample_ids, stream=stream, memory_format=self.memory_format)

    def _guided(self, output, time):
        guidance, channels = self.sampler.guidance, self.shape[0]
        w = self._like(guidance.at(time), self.x)
        gain = guidance.gain(output, channels, w)
        return guidance.combine(output, channels, w, gain)[:, :channels]

    def _bounded(self, x0):
        if not isinstance(self.sampler.clip, DynamicThreshold):
            return x0  # a static clip is the solver's own
        bound, shrink = (self._like(value, x0) for value in self.sampler.clip(x0))
        return x0.clamp(-bound, bound) * shrink

    def _classified(self, x0, fed, time, t):
        positional, keywords = arguments(self.condition)
        with torch.inference_mode(False):
            gradient = self.sampler.guidance.gradient(fed.clone(), time.clone(), *positional, **keywords)
        process = self.solver.process
        factor = process.c_in(t) * process.sigma(t) ** 2 / process.alpha(t)  # the gradient is of the network's input
        return x0 + self.sampler.guidance.scale * self._like(factor, x0) * gradient.to(x0.dtype)

    def _like(self, value, x):
        """[B] to [B, 1, ...] in x's dtype."""
        return value.to(x.dtype).view(-1, *(1,) * len(self.shape))
