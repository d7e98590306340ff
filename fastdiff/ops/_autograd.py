"""Registration of ops with a gradient that has none itself."""

import torch
from torch.autograd.function import once_differentiable


def once(backward):
    """A Function's backward that has no gradient itself, told so only where that could be asked for.

    once_differentiable by itself enters no_grad each time, which takes as long as a tensor's allocation or two.
    """
    guarded = once_differentiable(backward)

    def either(ctx, *gradients):
        return (guarded if torch.is_grad_enabled() else backward)(ctx, *gradients)

    return either


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
