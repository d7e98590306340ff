"""Calls of the ops with data: every kernel, its variants, dtypes and layouts; small: a cost an element does not grow.

`Case.arguments()` are those of the op's function in every backend, by name; outputs hold NaN.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastdiff.ops import reference
from tests.ops.test_reverse_step import DDPM, table
from tests.simt.harness import ARGUMENTS

IMAGES, LATENTS, ODD, EVEN, GROUPS = (2, 3, 32, 32), (2, 4, 32, 32), (2, 3, 5, 7), (2, 3, 6, 6), 32
TIMESTEPS = 10
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.uint8: "u8"}
OUTPUTS = {op: {name.rstrip("*") for name in names.split() if name.endswith("*")} for op, names in ARGUMENTS.items()}


@dataclass(frozen=True)
class Case:
    op: str
    variant: str
    dtype: torch.dtype  # of the result
    last: bool          # channels_last
    make: Callable      # (data) -> the arguments by name, those that are not None
    shape: tuple

    @property
    def name(self):
        layout = "last" if self.last else "first"
        return " ".join(filter(None, (self.op, self.variant, NAMES[self.dtype], layout)))

    @property
    def elements(self):
        return max(1, math.prod(self.shape))

    def arguments(self, seed=0):
        given = self.make(Data(self.dtype, self.last, self.shape, seed))
        parameters = inspect.signature(getattr(reference, self.op)).parameters
        unknown = given.keys() - parameters
        if unknown:
            raise ValueError(f"arguments of {self.op} must be among {', '.join(parameters)}, got {unknown}")
        defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
        return {name: given.get(name, defaults.get(name)) for name in parameters}

    def outputs(self, arguments):
        undefined = ("mean", "rstd") if not math.prod(self.shape) else ()  # of no elements
        names = OUTPUTS[self.op].difference(undefined)
        return {name: arguments[name] for name in names if isinstance(arguments.get(name), torch.Tensor)}


class Data:
    """Tensors for one call, random by seed."""

    def __init__(self, dtype, last, shape, seed):
        self.dtype, self.last, self.shape, self.generator = dtype, last, shape, torch.Generator().manual_seed(5 + seed)

    def laid_out(self, tensor):
        return tensor.contiguous(memory_format=torch.channels_last) if self.last else tensor

    def image(self, dtype=None, shape=None):
        shape, dtype = shape or self.shape, dtype or self.dtype
        if dtype is torch.uint8:
            return self.laid_out(torch.randint(0, 256, shape, dtype=dtype, generator=self.generator))
        return self.laid_out(torch.randn(shape, generator=self.generator).to(dtype))

    def empty(self, dtype=None, shape=None):
        return self.laid_out(torch.full(shape or self.shape, math.nan, dtype=dtype or self.dtype))

    def numbers(self, *shape, dtype=torch.float32):
        return torch.randn(shape, generator=self.generator).to(dtype)

    def table(self, *shape):
        return torch.rand(shape, generator=self.generator) + 0.25

    def unset(self, *shape, dtype=torch.float32):
        return torch.full(shape, math.nan, dtype=dtype)

    def t(self):
        return torch.tensor([3, 7, 5, 9, 1, 2, 8, 4])[: self.shape[0]]

    def counters(self):
        return dict(rng=torch.tensor([-5, 7]), sample_ids=torch.arange(self.shape[0]) * 1000003 + 2**31)

    def film(self):
        """add, scale and shift: the latter two halves of one tensor, as networks make them."""
        B, C = self.shape[:2]
        both = self.numbers(B, 2 * C, dtype=self.dtype)
        return dict(add=self.numbers(B, C, dtype=self.dtype), scale=both[:, :C], shift=both[:, C:])


def images_of(variant):
    """odd: no row is of vectors; even: they are of four elements, not of eight."""
    return {"odd": ODD, "even": EVEN}.get(variant.rpartition(" ")[2], IMAGES)


def normal(dtype, last, variant):
    def make(data):
        return dict(out=data.empty(), stream=0, **data.counters())

    return Case("normal", variant, dtype, last, make, images_of(variant))


def q_sample(dtype, last, source, variant):
    """variant: drawn; given, the noise; training, drawn and returned, with flips; odd likewise."""

    def make(data):
        noise = dict(noise=data.image(torch.float32)) if variant == "given" else data.counters()
        extra = {}
        if variant in ("training", "odd"):
            extra = dict(flip=torch.tensor([True, False]), noise_out=data.empty(torch.float32))
        tables = dict(alpha=data.table(TIMESTEPS), sigma=data.table(TIMESTEPS))
        return dict(x_start=data.image(source), t=data.t(), stream=3, x_t=data.empty(), **tables, **noise, **extra)

    return Case("q_sample", f"of {NAMES[source]} {variant}", dtype, last, make, images_of(variant))


ROWS = {
    "drawn": DDPM, "given": DDPM, "guided": {**DDPM, "w": 3.5},
    "learned": {**DDPM, "std": 1.0, "l_0": -2.0, "l_1": 1.0},
    "history": {**DDPM, "std": 0, "c_1": 0.3, "c_2": -0.2, "c_3": 0.1, "write": 1, "q_x": 0.5, "q_0": 0.25, "q_m": -1},
    "masked": {**DDPM, "k_0": 0.8, "k_n": 0.6},
}  # fmt: skip


def reverse_step(dtype, last, variant):
    """A float32 state, and a state of the dtype where it is narrow; a network of the dtype; both of the layout."""
    shape = images_of(variant) if variant.endswith(("odd", "even")) else LATENTS
    B, C, *space = shape
    words = variant.split()

    def make(data):
        row = {**next((ROWS[word] for word in words if word in ROWS), ROWS["drawn"]), "c_in": 0.7}
        wide = dtype if "narrow" in words else torch.float32
        copies, halves = 1 + ("guided" in words), 1 + ("learned" in words)
        given = dict(x=data.image(wide), model_output=data.image(shape=(copies * B, halves * C, *space)),
                     rows=table(row, row), row=torch.tensor([0]), out=data.empty(wide),
                     model_input=data.empty(shape=(copies * B, C, *space)))  # fmt: skip
        if variant == "history":
            given["history"] = torch.stack([data.image(wide).movedim(1, -1) for _ in range(3)])
            given["history"] = given["history"].movedim(-1, 2) if last else given["history"].movedim(-1, 2).contiguous()
        if variant == "masked":
            given["mask"], given["known"] = (data.image(wide, (B, 1, *space)) > 0).float(), data.image(wide)
        return {**given, **(dict(noise=data.image(wide)) if variant == "given" else data.counters())}

    return Case("reverse_step", variant, dtype, last, make, shape)


BLOCKS = {  # of group_norm_silu: a group fits on chip, with or without all terms; it does not; its rows are no vectors
    "": (8, 128, 32, 32), "film": (2, 128, 32, 32), "large": (1, 64, 128, 128), "odd": (2, 128, 15, 15),
    "dropout": (2, 128, 32, 32), "large dropout": (1, 64, 128, 128), "odd dropout": (2, 128, 15, 15),
    "few": (2, 15, 7, 9), "few dropout": (2, 15, 7, 9), "large few": (1, 15, 64, 66),  # channels last, likewise
    "one group": (1, 8, 256, 264),  # of more chunks than every block would merge
    "empty": (2, 64, 0, 4),
}  # fmt: skip
PAGES = {  # of rms_norm_silu: likewise, a position's channels
    "": (2, 256, 32, 32), "film": (2, 256, 32, 32), "wide": (1, 8192, 8, 8), "odd": (2, 129, 15, 15),
    "few": (2, 15, 7, 9), "empty": (2, 64, 0, 4),
}  # fmt: skip


def groups_of(variant):
    return 1 if variant == "one group" else 3 if "few" in variant else GROUPS


def norm_terms(data, variant):
    C = data.shape[1]
    terms = data.film() if variant == "film" else {}
    if variant.endswith("dropout"):
        terms |= dict(threshold=2**30, factor=4 / 3, stream=256, **data.counters())
    weight, bias = (data.numbers(C, dtype=data.dtype) for _ in range(2))
    return dict(weight=weight, bias=bias, silu=True, **terms)


def group_norm_silu(dtype, last, variant):
    B, groups = BLOCKS[variant][0], groups_of(variant)

    def make(data):
        residual = dict(residual=data.image()) if variant.endswith("dropout") else {}
        statistics = dict(mean=data.unset(B, groups), rstd=data.unset(B, groups))
        given = dict(x=data.image(), groups=groups, eps=1e-5, y=data.empty())
        return {**given, **norm_terms(data, variant), **residual, **statistics}

    return Case("group_norm_silu", variant, dtype, last, make, BLOCKS[variant])


def gradients(data, given, names):
    """Unset gradients of the arguments that there are."""
    sizes = {name: data.shape[1:2] if name in ("weight", "bias") else data.shape[:2] for name in names}
    return {f"grad_{name}": data.unset(*sizes[name], dtype=given[name].dtype) for name in names if name in given}


def group_norm_silu_backward(dtype, last, variant):
    B, C, *space = BLOCKS[variant]
    groups, size = groups_of(variant), C * math.prod(space) // groups_of(variant)

    def make(data):
        given = dict(grad_y=data.image(), x=data.image(), groups=groups, grad_x=data.empty())
        given |= norm_terms(data, variant)
        moved = given["x"].double() + (given["add"].double()[..., None, None] if "add" in given else 0)
        grouped = moved.reshape(B, groups, size)
        given["mean"] = grouped.mean(-1).float()
        given["rstd"] = (grouped.var(-1, correction=0) + 1e-5).rsqrt().float()
        return given | gradients(data, given, ("weight", "bias", "add", "scale", "shift"))

    return Case("group_norm_silu_backward", variant, dtype, last, make, BLOCKS[variant])


def rms_terms(data, variant):
    film = data.film() if variant == "film" else {}
    film.pop("add", None)
    weight = data.numbers(data.shape[1], dtype=data.dtype)
    return dict(x=data.image(), weight=weight, eps=0.0, most=1e12, silu=True, **film)


def rms_norm_silu(dtype, last, variant):
    return Case("rms_norm_silu", variant, dtype, last, lambda data: dict(y=data.empty(), **rms_terms(data, variant)),
                PAGES[variant])  # fmt: skip


def rms_norm_silu_backward(dtype, last, variant):
    def make(data):
        given = dict(grad_y=data.image(), grad_x=data.empty(), **rms_terms(data, variant))
        return given | gradients(data, given, ("weight", "scale", "shift"))

    return Case("rms_norm_silu_backward", variant, dtype, last, make, PAGES[variant])
