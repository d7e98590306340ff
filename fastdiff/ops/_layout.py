"""Memory layouts: backends are given dense tensors, channels first or last; whatever else comes is copied here."""

import torch

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(tensor):
    """Whether [B, C, *] lies in memory as a dense [B, *, C]."""
    memory_format = _FORMATS.get(tensor.dim())
    if memory_format is not None:
        return tensor.is_contiguous(memory_format=memory_format)
    return tensor.movedim(1, -1).is_contiguous()


def addressed_last(tensor):
    """How backends address a dense tensor: as channels last only where it is not also contiguous."""
    return not tensor.is_contiguous()


def dense(tensor):
    """The tensor, or a contiguous copy where it lies in neither layout."""
    if tensor is None or tensor.is_contiguous() or is_channels_last(tensor):
        return tensor
    return tensor.contiguous()


def in_layout(tensor, last):
    """The tensor, or a copy in the layout asked for."""
    if tensor is None:
        return None
    if not last:
        return tensor.contiguous()
    return tensor if is_channels_last(tensor) else tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def empty(shape, last, dtype, device):
    """A new [B, C, *] tensor in the layout asked for."""
    if not last:
        return torch.empty(shape, dtype=dtype, device=device)
    _, stride, *spatial = shape
    strides = []
    for size in reversed(spatial):
        strides.append(stride)
        stride *= size
    return torch.empty_strided(shape, (stride, 1, *reversed(strides)), dtype=dtype, device=device)


def empty_as(source, last, dtype):
    """A new tensor of a dense source's shape and device in the layout asked for."""
    if last != source.is_contiguous():
        return torch.empty_like(source) if source.dtype is dtype else torch.empty_like(source, dtype=dtype)
    return empty(source.shape, last, dtype, source.device)


def wants_last(memory_format, source=None):
    """Whether an output of this memory format (torch.preserve_format: that of `source`) is channels last."""
    if memory_format is torch.preserve_format:
        return source is not None and not source.is_contiguous() and is_channels_last(source)
    if memory_format is not torch.contiguous_format and memory_format not in _FORMATS.values():
        rule = "torch.contiguous_format, torch.channels_last, torch.channels_last_3d or torch.preserve_format"
        raise ValueError(f"memory_format must be {rule}, got {memory_format!r}")
    return memory_format is not torch.contiguous_format


def rows(value):
    """[B, C] with unit channel stride and any row stride; or None."""
    return value if value is None or value.stride(1) == 1 or value.shape[1] == 1 else value.contiguous()


def vector(value):
    return value if value is None else value.contiguous()


def in_strides_of(result, like):
    """The result with the strides of `like` where those are dense."""
    other = torch.empty_like(like)
    return result if other.stride() == result.stride() else other.copy_(result)


def gradients(x, others, needs):
    """Where the gradients of inputs go, None where it is not needed: of x like x, of [B, C] and [C] contiguous."""
    found = [torch.empty_like(x) if needs[0] else None]
    for value, need in zip(others, needs[1:], strict=True):
        found.append(_contiguous_like(value) if need else None)
    return found


def _contiguous_like(value):
    """As torch.empty_like with a memory format, which takes longer to read its arguments than to make a vector."""
    return torch.empty_like(value) if value.is_contiguous() else value.new_empty(value.shape)
