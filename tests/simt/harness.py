"""fastdiff's CUDA kernels on the CPU: `installed()` puts them in the place of the C++ ones.

FASTDIFF_SIMT_SEED permutes the order of blocks, warps and lanes, as `seed` does.
"""

import contextlib
import functools
import importlib.util
import os
from collections import defaultdict

import torch

from fastdiff.ops import native

from . import build

# The binding's arguments after device, stream and threads; * marks what the kernel writes, - what is no tensor. Kernels
# may reach no other memory.
ARGUMENTS = {
    "normal": "out* rng sample_ids -",
    "q_sample": "x_start t alpha sigma noise rng sample_ids flip - x_t* noise_out*",
    "reverse_step": "x model_output rows row out* model_input* history* noise rng sample_ids extra mask known"
    " known_noise gain bound shrink",
    "group_norm_silu": "x weight bias - - add scale shift - y* mean* rstd* workspace* residual rng"
    " sample_ids - - -",
    "group_norm_silu_backward": "grad_y x mean rstd weight bias - add scale shift - grad_x* grad_weight* grad_bias*"
    " grad_add* grad_scale* grad_shift* workspace* rng sample_ids - - -",
    "diffusion_loss": "model_output x_start t target_x0 target_eps noise rng sample_ids flip weight sample_weight -"
    " loss* workspace*",
    "diffusion_loss_backward": "grad_loss model_output x_start t target_x0 target_eps noise rng sample_ids flip weight"
    " sample_weight - grad*",
    "vlb_terms": "model_output x_start x_t t table flip weight sample_weight - - - terms* workspace*",
    "vlb_terms_backward": "grad_terms model_output x_start x_t t table flip weight sample_weight - - - grad*",
    "rms_norm_silu": "x weight - - scale shift - y*",
    "rms_norm_silu_backward": "grad_y x weight - - scale shift - grad_x* grad_weight* grad_scale* grad_shift*"
    " workspace*",
}


def unavailable():
    """Why the harness cannot be built; None where it can."""
    return None if build.compiler() else "there is no C++ compiler"


@functools.cache
def _library():
    """Path of the library and None, or None and the error that its build ended with, which is not tried again."""
    try:
        return build.library(), None
    except RuntimeError as error:
        return None, error


@functools.cache
def load():
    """The library's modules: _C as fastdiff's, simt for the harness itself, planted with the kernels of its tests."""
    path, error = _library()
    if error:
        raise error
    modules = {name: _load(name, path) for name in ("_C", "simt", "planted")}
    modules["_C"].set_torch(*native.TORCH)
    modules["simt"].set_names(build.functions(path))
    modules["simt"].set_seed(int(os.environ.get("FASTDIFF_SIMT_SEED", "0")))
    return modules


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spans(tensor):
    """(address, bytes) of each dense piece of a tensor that is dense, or whose rows are."""
    if tensor.numel() == 0:
        return []
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if extent == tensor.numel():
        return [(tensor.data_ptr(), tensor.nbytes)]
    assert tensor.dim() == 2 and (tensor.stride(1) == 1 or tensor.shape[1] == 1), tensor.stride()
    size = tensor.element_size()
    return [(tensor.data_ptr() + row * tensor.stride(0) * size, tensor.shape[1] * size) for row in range(len(tensor))]


@contextlib.contextmanager
def registered(each):
    """In this context kernels may reach these tensors and nothing else. each: (name, tensor, may it be written)."""
    simt = load()["simt"]
    try:
        for name, tensor, writable in each:
            for address, count in spans(tensor):
                simt.add_range(name, address, count, writable)
        yield
    finally:
        simt.clear_ranges()


class Binding:
    """Stands for fastdiff._C: tensors on the CPU, kernels of csrc/cuda."""

    def __init__(self):
        self._C = load()["_C"]
        for op, names in ARGUMENTS.items():
            setattr(self, op, functools.partial(self._call, op, names.split()))

    def __getattr__(self, name):
        return getattr(self._C, name)

    def _call(self, op, names, *arguments):
        with registered(_named(names, arguments[3:])):
            return getattr(self._C, op)(*arguments)

    def steps(self, *arguments):
        return self._C.steps(*arguments), _named(ARGUMENTS["reverse_step"].split(), arguments[3:])

    def steps_row(self, steps, stream, threads, i, model_output):
        capsule, kept = steps
        outputs = [("model_output", model_output, False)]
        with registered([each for each in kept if each[0] != "model_output"] + outputs):
            return self._C.steps_row(capsule, stream, threads, i, model_output)


def _named(names, arguments):
    return [
        (name.rstrip("*"), value, name.endswith("*"))
        for name, value in zip(names, arguments, strict=False)
        if isinstance(value, torch.Tensor)
    ]


@contextlib.contextmanager
def installed():
    """Ops on backend "cpu" run the CUDA kernels in this context: to `native`, tensors are on device 0."""
    before = native._C, native._place
    native._C, native._place = Binding(), lambda tensor: (0, 0, 0)
    try:
        yield
    finally:
        native._C, native._place = before


@contextlib.contextmanager
def seed(value):
    """Launches run in the order of this seed."""
    load()["simt"].set_seed(value)
    try:
        yield
    finally:
        load()["simt"].set_seed(int(os.environ.get("FASTDIFF_SIMT_SEED", "0")))


@contextlib.contextmanager
def only_blocks(*blocks):
    """Launches run these blocks alone, by linear index, -1 the last."""
    load()["simt"].set_only_blocks(blocks)
    try:
        yield
    finally:
        load()["simt"].set_only_blocks([])


@contextlib.contextmanager
def counted():
    """Fills the yielded list with a dict per launch: kernel, grid, block, shared; and tensors, a dict by name:

    bytes; read and written, distinct bytes; of each of these two _sectors, those of 32 bytes that warps' accesses
    touched, and _minimal_sectors, as many as the bytes of each access need.
    """
    simt, launches = load()["simt"], []
    simt.take_reports()
    simt.set_counting(True)
    try:
        yield launches
    finally:
        simt.set_counting(False)
        for report in simt.take_reports():
            tensors = defaultdict(lambda: defaultdict(int))
            for each in report.pop("ranges"):
                name = each.pop("name")
                for key, value in each.items():
                    tensors[name][key] += value
            launches.append({**report, "tensors": {name: dict(counts) for name, counts in tensors.items()}})
