"""What becomes of a step whose gradient is not finite, without asking the device."""

import torch

from .sharding import local


class Guard:
    """Counts on the device; a bad step leaves the weights as they were. Read it when something is logged anyway.

    check(loss, norm, step) -> bad, float32 []: 1 where the step must not be taken, as `found_inf` of a fused optimizer;
        step int64 [].
    first() -> the first bad step since the last call, or None; this waits for the device.
    """

    def __init__(self, device):
        self._first = torch.full((), -1, dtype=torch.int64, device=device)

    def check(self, loss, norm, step):
        bad = ~(loss.isfinite() & norm.isfinite())
        self._first.copy_(torch.where(bad & (self._first < 0), step, self._first))
        return bad.float()

    def first(self):
        step = int(self._first)
        self._first.fill_(-1)
        return None if step < 0 else step


def first_bad_site(model, run):
    """The name of the first module whose output is not finite while run() runs, or of a bad parameter, or None."""
    for name, parameter in model.named_parameters():
        if not local(parameter).isfinite().all():
            return f"parameter {name}"
    found = []

    def look(name):
        def hook(module, inputs, output):
            values = output if isinstance(output, tuple) else (output,)
            tensors = [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
            if not found and not all(value.isfinite().all() for value in tensors):
                found.append(f"module {name or 'model'}")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return found[0]
    bad = (name for name, p in model.named_parameters() if p.grad is not None and not local(p.grad).isfinite().all())
    name = next(bad, None)
    return name and f"gradient of {name}"
