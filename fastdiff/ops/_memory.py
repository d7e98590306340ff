"""Whether a tensor is what it was, for what is made of it once and kept."""

from . import _layout

try:
    from fastdiff._C import content
except ImportError:

    def content(address, count):
        return 0


def facts(tensor):
    """(version, address, bytes, content) of a tensor that was not made in inference mode: how `same` knows it again.

    A write past the version counter, through .data or from another process, shows in the content: 30 float32 spread
    over a dense tensor on the CPU, all of a small one. Whoever keeps the facts keeps `untyped_storage()` too, or other
    memory could come to lie at the address.
    """
    dense = tensor.device.type == "cpu" and (tensor.is_contiguous() or _layout.is_channels_last(tensor))
    address, count = tensor.data_ptr(), tensor.nbytes if dense else 0
    return tensor._version, address, count, content(address, count)


def same(tensor, version, address, count, known):
    """Whether a tensor still has these facts; `fastdiff._C.unchanged` asks it of many."""
    return tensor._version == version and tensor.data_ptr() == address and content(address, count) == known
