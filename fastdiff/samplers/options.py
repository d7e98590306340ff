"""What a sampler may be told, checked before any work."""

import inspect
import math
from numbers import Real

from .guidance import Classifier, ClassifierFree
from .solvers import SOLVERS
from .thresholding import DynamicThreshold


def checked_guidance(guidance):
    if guidance is None or isinstance(guidance, (ClassifierFree, Classifier)):
        return guidance
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, ClassifierFree or Classifier, got {guidance!r}")
    return ClassifierFree(guidance)


def checked_clip(clip):
    if clip is None or isinstance(clip, DynamicThreshold):
        return clip
    if isinstance(clip, bool) or not isinstance(clip, Real) or not clip > 0:
        raise ValueError(f"clip must be a positive number, DynamicThreshold or None, got {clip!r}")
    return clip


def check_solver(solver, options):
    if not callable(solver) and not (isinstance(solver, str) and solver in SOLVERS):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, or a function, got {solver!r}")
    parameters = inspect.signature(solver if callable(solver) else SOLVERS[solver]).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        taken = ", ".join(name for name in known if name != "clip") or "none"
        raise TypeError(f"options must be among the solver's ({taken}), got {unknown!r}")


def check_modes(compile, cuda_graph):
    if not isinstance(compile, (bool, dict)):
        raise TypeError(f"compile must be a bool or a dict of torch.compile's options, got {type(compile).__name__}")
    if cuda_graph not in ("auto", True, False):
        raise ValueError(f"cuda_graph must be 'auto', True or False, got {cuda_graph!r}")
