"""Registration of ops with a gradient that has none itself."""

import torch


def once(backward):
    """A Function's backward that has no gradient itself, which is said where one is asked for.

    What it gives then still hangs on what it was made of: torch's once_differentiable cuts that off, so that
    autograd.grad finds no way to its inputs through here, and a second derivative lacks this part without a word.
    """

    def either(ctx, *gradients):
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        ctx = _Read(ctx)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        made = [value for value in found if value is not None]
        among = iter(_Refusal.apply(len(made), *made, *gradients, *ctx.saved_tensors))
        return tuple(value if value is None else next(among) for value in found)

    return either


class _Read:
    """A context whose saved tensors are unpacked, which a checkpoint allows once."""

    def __init__(self, ctx):
        self.ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name):
        return getattr(self.ctx, name)


class _Refusal(torch.autograd.Function):
    """The first so many of some tensors, differentiable in none."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("this op is differentiable once: its gradient has no gradient")


def register(library, op, forward, gradient, fake, fake_gradient, backward, setup_context):
    """Registers `op` and `op`_backward, whose schemas the library knows, on every device.

    forward, gradient: what they compute; fake, fake_gradient: the shapes of that; backward, setup_context: the op's
    gradient by the other one.
    """
    names = f"fastdiff::{op}", f"fastdiff::{op}_backward"

    def no_double_backward(ctx, *gradients):
        raise NotImplementedError(f"{op} is differentiable once: its gradient has no gradient")

    for name, function, shapes in zip(names, (forward, gradient), (fake, fake_gradient), strict=True):
        library.impl(name.removeprefix("fastdiff::"), function, "CompositeExplicitAutograd")
        torch.library.register_fake(name, shapes, lib=library)
    torch.library.register_autograd(names[0], backward, setup_context=setup_context, lib=library)
    torch.library.register_autograd(names[1], no_double_backward, lib=library)


def of_first(library, op, forward, gradient, tensors, fake):
    """Registers an op that is differentiable in its first argument alone, the first of so many tensors.

    gradient(upstream, *arguments) is like that argument. Returns the eager path's function: it skips the dispatcher.
    """

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def backward(ctx, upstream):
        call = getattr(torch.ops.fastdiff, f"{op}_backward")
        return call(upstream, *ctx.saved_tensors, *ctx.options), *(None,) * (len(ctx.needs_input_grad) - 1)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            setup_context(ctx, arguments, None)
            return forward(*arguments)

        @staticmethod
        @once
        def backward(ctx, upstream):
            found = gradient(upstream, *ctx.saved_tensors, *ctx.options)
            return found, *(None,) * (len(ctx.needs_input_grad) - 1)

    def fake_gradient(upstream, first, *rest):
        return torch.empty_like(first)

    register(library, op, forward, gradient, fake, fake_gradient, backward, setup_context)
    return Function.apply
