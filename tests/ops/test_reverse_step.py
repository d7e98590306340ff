"""`reverse_step` on every backend: the exact result is the definition's in float64, eager's is that in float32."""

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops import rng, rows
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import LEVELS, on_device

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def table(*each, dtype=torch.float32, device="cpu"):
    """Rows from dictionaries of coefficients; what is not named is neutral."""
    values = torch.zeros(len(each), rows.WIDTH, dtype=dtype)
    values[:, rows.COLUMNS["write"]] = -1
    values[:, rows.COLUMNS["bound"]] = float("inf")
    values[:, rows.COLUMNS["c_in"]] = 1
    for row, coefficients in zip(values, each, strict=True):
        for name, value in coefficients.items():
            row[rows.COLUMNS[name]] = value
    return values.to(device)


DDPM = dict(p_x=1.2, p_m=-0.7, bound=1.0, c_x=0.6, c_0=0.4, std=0.3)
ROWS = {
    "ddpm": DDPM,
    "last step, no noise": {**DDPM, "std": 0.0},
    "x0 only": dict(p_m=1.0, c_0=1.0),
    "raw output beside a clipped x0": dict(p_x=1.2, p_m=-0.7, bound=0.5, c_0=0.9, c_m=0.3),
    "no network, only noise": dict(c_x=0.9, std=0.4),
    "learned variance": {**DDPM, "std": 1.0, "l_0": -2.0, "l_1": 1.0},
    "learned variance, no noise": {**DDPM, "std": 0.0, "l_1": 1.0},
    "guided": {**DDPM, "w": 3.5},
    "guidance weight 0": {**DDPM, "w": 0.0},
    "extra everywhere": {**DDPM, "g_0": 0.2, "g_x": 0.1, "g_v": 0.5, "l_0": -1.0},
    "history": {**DDPM, "c_1": 0.3, "c_2": -0.2, "c_3": 0.1},
    "history written": {**DDPM, "c_1": 0.3, "write": 0, "q_x": 0.5, "q_0": 0.25, "q_m": -1.0},
    "history slot 2 written": dict(p_m=1.0, c_0=1.0, write=2, q_0=1.0),
    "inpainting": {**DDPM, "k_0": 0.8, "k_n": 0.6},
    "inpainting, known region clean": {**DDPM, "k_0": 1.0},
    "scaled input": {**DDPM, "c_in": 0.5},
}
SHAPES = {
    "even": (2, 4, 4, 4),
    "odd, last block discards lanes": (2, 3, 5, 3),
    "one element": (1, 1, 1, 1),
    "longer than a tile": (1, 3, 33, 17),
}


def inputs(shape, name, device, dtype=torch.float32, model_dtype=torch.float32, guided=False, learned=False):
    """Everything that a row can read, with NaN in what this one must not."""
    coefficients, generator = ROWS[name], torch.Generator().manual_seed(len(name))
    B, C, *space = shape

    def tensor(*lead, kind=dtype, used=True):
        value = torch.randn((*lead, *space), generator=generator).to(kind)
        value = value if used else torch.full_like(value, float("nan"))
        return value.to(device, kind)

    def uses(*names):
        return any(coefficients.get(name, 0) for name in names)

    model_output = tensor((1 + guided) * B, (1 + learned) * C, kind=model_dtype, used=uses("p_m", "c_m", "q_m"))
    if guided and not uses("w"):
        model_output[B:, :C] = float("nan")
    if learned:
        model_output[:, C:] = tensor(len(model_output), C, kind=model_dtype, used=uses("l_1"))
    arguments = dict(x=tensor(B, C, used=uses("p_x", "c_x", "q_x")), model_output=model_output)
    arguments["extra"] = tensor(B, C, used=uses("g_0", "g_x", "g_v"))
    arguments["history"] = torch.stack([tensor(B, C, used=uses(f"c_{slot}")) for slot in (1, 2, 3)])
    arguments["noise"] = tensor(B, C, used=uses("std"))
    if uses("k_0"):
        arguments["mask"] = (torch.rand((B, 1, *space), generator=generator) > 0.5).to(device, dtype)
        arguments["known"], arguments["known_noise"] = tensor(B, C), tensor(B, C, used=uses("k_n"))
    return arguments


def definition(arguments, coefficients, row, dtype, copies=1):
    """Result, history and model input of the reference in this dtype, on the CPU."""
    wide = {
        name: value if value.dtype is torch.bool else value.to("cpu", dtype).clone()
        for name, value in arguments.items()
    }
    for name in ("gain", "bound", "shrink"):
        if name in wide:
            wide[name] = wide[name].float()
    x = wide["x"]
    model_input = x.new_empty((copies * len(x), *x.shape[1:]))
    with fastdiff.use_backend("reference"):
        result = ops.reverse_step(rows=coefficients.to("cpu", dtype), row=row.cpu(), model_input=model_input, **wide)
    return result, wide.get("history"), model_input


def formats(shape):
    return [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]


def laid_out(arguments, memory_format):
    def convert(value):
        if value.dim() == 5:
            last = memory_format == torch.channels_last
            return value.movedim(2, -1).contiguous().movedim(-1, 2) if last else value.contiguous()
        return value.contiguous(memory_format=memory_format)

    return {name: value if value.dim() < 4 else convert(value.clone()) for name, value in arguments.items()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ROWS)
def test_budget_of_every_term(backend, device, name, shape):
    learned, guided = name.startswith("learned"), name.startswith("guid")
    arguments = inputs(shape, name, device, guided=guided, learned=learned)
    coefficients = table(ROWS[name], {**ROWS[name], "c_in": 0.7}, device=device)
    row = torch.zeros((), dtype=torch.int64, device=device)
    exact, eager = (definition(arguments, coefficients, row, dtype) for dtype in (torch.float64, torch.float32))
    for memory_format in formats(shape):
        given = laid_out(arguments, memory_format)
        model_input = torch.empty_like(given["x"], memory_format=torch.contiguous_format)
        result = ops.reverse_step(rows=coefficients, row=row, model_input=model_input, **given)
        assert result.stride() == given["x"].stride()
        assert_in_budget(result, exact[0], error_of(eager[0], exact[0]))
        assert_in_budget(model_input, exact[2], error_of(eager[2], exact[2]))
        written = int(ROWS[name].get("write", -1))
        for slot in range(3):
            if slot == written:
                assert_in_budget(given["history"][slot], exact[1][slot], error_of(eager[1][slot], exact[1][slot]))
            else:
                assert same_bits(given["history"][slot], arguments["history"][slot])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_dtype", DTYPES)
@pytest.mark.parametrize("layouts", [(x, m) for x in ("first", "last") for m in ("first", "last")], ids="-".join)
def test_budget_of_every_dtype_and_layout(backend, device, dtype, model_dtype, layouts):
    by_name = {"first": torch.contiguous_format, "last": torch.channels_last}
    state, network = (by_name[layout] for layout in layouts)
    shape, name = (2, 4, 6, 5), "learned variance"
    arguments = inputs(shape, name, device, dtype, model_dtype, learned=True)
    coefficients = table(ROWS[name], {**ROWS[name], "c_in": 0.7}, device=device)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    exact, eager = (definition(arguments, coefficients, row, kind, copies=2) for kind in (torch.float64, torch.float32))
    given = laid_out(arguments, state)
    given["model_output"] = given["model_output"].contiguous(memory_format=network)
    model_input = torch.empty((4, *shape[1:]), dtype=model_dtype, device=device).contiguous(memory_format=network)
    result = ops.reverse_step(rows=coefficients, row=row, model_input=model_input, **given)
    assert result.dtype is dtype
    assert_in_budget(result, exact[0], error_of(eager[0], exact[0]))
    assert_in_budget(model_input, exact[2], error_of(eager[2], exact[2]))


def test_float64(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    for name in ROWS:
        learned, guided = name.startswith("learned"), name.startswith("guid")
        arguments = inputs((2, 3, 3, 5), name, device, torch.float64, torch.float64, guided, learned)
        coefficients, row = table(ROWS[name], dtype=torch.float64), torch.tensor([0])
        exact, history, _ = definition(arguments, coefficients, row, torch.float64)
        result = ops.reverse_step(rows=coefficients, row=row, **arguments)
        assert_in_budget(result, exact, 0.0)
        assert torch.allclose(arguments["history"], history, rtol=1e-14, atol=1e-14, equal_nan=True)


def test_the_definition_is_ddpms_posterior_mean():
    """Ho et al. 2020, equations 6, 7 and 11, written out."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    products = (1 - betas).cumprod(0)
    t = 400
    bar, previous, beta = products[t], products[t - 1], betas[t]
    x, eps, noise = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    x0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
    mean = previous.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - previous) / (1 - bar) * x
    std = (beta * (1 - previous) / (1 - bar)).sqrt()
    coefficients = table(
        dict(p_x=1 / bar.sqrt(), p_m=-((1 - bar) / bar).sqrt(), bound=1.0, c_0=previous.sqrt() * beta / (1 - bar),
             c_x=(1 - beta).sqrt() * (1 - previous) / (1 - bar), std=std), dtype=torch.float64,
    )  # fmt: skip
    with fastdiff.use_backend("reference"):
        result = ops.reverse_step(x, eps, coefficients, torch.tensor(0), noise=noise)
    assert torch.allclose(result, mean + std * noise, rtol=1e-13, atol=1e-13)


def test_the_definition_of_guidance_variance_and_history():
    """The other terms of the design, written out once more without the reference's helpers."""
    x, extra, h0, h1, h2, noise = torch.randn(6, 2, 1, 2, 2, dtype=torch.float64)
    output = torch.randn(4, 2, 2, 2, dtype=torch.float64)
    c = dict(w=2.0, p_x=0.5, p_m=0.25, bound=0.4, g_0=0.1, l_0=-1.0, l_1=0.5, c_x=0.3, c_0=0.7, c_m=-0.2, c_1=0.11,
             c_2=0.12, c_3=0.13, g_x=0.6, g_v=0.9, std=1.0, q_x=0.2, q_0=0.4, q_m=0.8, write=1)  # fmt: skip
    gain, bound, shrink = torch.tensor([1.5, 0.5]), torch.tensor([0.3, 0.6]), torch.tensor([0.9, 0.8])
    history = torch.stack([h0, h1, h2])
    with fastdiff.use_backend("reference"):
        result = ops.reverse_step(x, output, table(c, dtype=torch.float64), torch.tensor(0), extra=extra,
                                  history=history, noise=noise, gain=gain, bound=bound, shrink=shrink)  # fmt: skip
    k, limit, factor = (value.double().view(2, 1, 1, 1) for value in (gain, bound, shrink))
    uncond, cond = output[:2, :1], output[2:, :1]
    m = k * (uncond + 2 * (cond - uncond))
    x0 = torch.minimum(torch.maximum(0.5 * x + 0.25 * m, -limit), limit) * factor + 0.1 * extra
    s = torch.exp((-1 + 0.5 * output[2:, 1:]) / 2)
    expected = 0.3 * x + 0.7 * x0 - 0.2 * m + 0.11 * h0 + 0.12 * h1 + 0.13 * h2
    expected += (0.6 + 0.9 * s * s) * extra + s * noise
    assert torch.allclose(result, expected, rtol=1e-13, atol=1e-13)
    assert torch.allclose(history[1], 0.2 * x + 0.4 * x0 + 0.8 * m, rtol=1e-13, atol=1e-13)


def test_the_input_after_the_last_row_is_not_scaled(backend, device):
    x, row = torch.randn(2, 3, 3, 4, device=device), torch.ones((), dtype=torch.int64, device=device)
    model_input, coefficients = torch.empty_like(x), table(dict(c_x=0.9), dict(c_x=0.9, c_in=0.5), device=device)
    result = ops.reverse_step(x, None, coefficients, row, model_input=model_input)
    assert same_bits(model_input, result)


def test_per_sample_factors(backend, device):
    arguments = inputs((3, 2, 3, 4), "ddpm", device)
    arguments["gain"] = torch.tensor([1.0, 0.5, 2.0], device=device)
    arguments["bound"] = torch.tensor([0.2, 5.0, float("inf")], device=device)
    arguments["shrink"] = torch.tensor([1.0, 0.5, 0.25], device=device)
    coefficients, row = table(DDPM, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    exact, eager = (definition(arguments, coefficients, row, dtype) for dtype in (torch.float64, torch.float32))
    assert_in_budget(ops.reverse_step(rows=coefficients, row=row, **arguments), exact[0], error_of(eager[0], exact[0]))


def test_the_variance_is_the_conditional_outputs_without_guidance_as_well(backend, device):
    arguments = inputs((2, 3, 4, 4), "learned variance", device, guided=True, learned=True)
    coefficients, row = table(ROWS["learned variance"], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    exact, eager = (definition(arguments, coefficients, row, dtype) for dtype in (torch.float64, torch.float32))
    for memory_format in formats((2, 3, 4, 4)):
        given = laid_out(arguments, memory_format)
        assert_in_budget(ops.reverse_step(rows=coefficients, row=row, **given), exact[0], error_of(eager[0], exact[0]))


@pytest.mark.parametrize("lead", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
def test_masks_of_every_extent(backend, device, lead):
    arguments = inputs((2, 3, 4, 5), "inpainting", device)
    arguments["mask"] = torch.rand((*lead, 4, 5), device=device)
    coefficients, row = table(ROWS["inpainting"], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    exact, eager = (definition(arguments, coefficients, row, dtype) for dtype in (torch.float64, torch.float32))
    for memory_format in formats((2, 3, 4, 5)):
        given = laid_out(arguments, memory_format)
        assert_in_budget(ops.reverse_step(rows=coefficients, row=row, **given), exact[0], error_of(eager[0], exact[0]))
        boolean = {**given, "mask": given["mask"] > 0.5}
        ones = {**given, "mask": (given["mask"] > 0.5).float()}
        assert same_bits(ops.reverse_step(rows=coefficients, row=row, **boolean),
                         ops.reverse_step(rows=coefficients, row=row, **ones))  # fmt: skip


def test_a_row_of_each_sample(backend, device):
    names = ["ddpm", "x0 only", "no network, only noise"]
    coefficients = table(*(ROWS[name] for name in names), device=device)
    arguments = inputs((4, 3, 3, 5), "ddpm", device)
    row = torch.tensor([2, 0, 1, 0], device=device)
    together = ops.reverse_step(rows=coefficients, row=row, **arguments)
    for b in range(4):
        only = slice(b, b + 1)
        one = {name: value[:, only] if name == "history" else value[only] for name, value in arguments.items()}
        assert same_bits(ops.reverse_step(rows=coefficients, row=row[b : b + 1], **one), together[b : b + 1])


def test_drawn_noise_is_that_of_normal(backend, device):
    key, ids = rng.make_rng(5, 6, device), torch.arange(3, 6, device=device)
    shape = (3, 3, 5, 7)
    arguments = inputs(shape, "inpainting", device)
    for name in ("noise", "known_noise"):
        arguments.pop(name)
    coefficients, row = table(ROWS["inpainting"], device=device), torch.zeros((), dtype=torch.int64, device=device)
    for memory_format in formats(shape):
        given = laid_out(arguments, memory_format)
        drawn = ops.reverse_step(rows=coefficients, row=row, rng=key, sample_ids=ids, **given)
        tensors = {
            name: ops.normal(shape, key, ids, stream=stream, memory_format=memory_format)
            for name, stream in (("noise", rng.STEP), ("known_noise", rng.KNOWN))
        }
        assert same_bits(drawn, ops.reverse_step(rows=coefficients, row=row, **tensors, **given))


def test_in_place_is_out_of_place(backend, device):
    arguments = inputs((2, 3, 5, 7), "history written", device)
    coefficients, row = table(ROWS["history written"], device=device), torch.zeros((), dtype=torch.int64, device=device)
    for memory_format in formats((2, 3, 5, 7)):
        apart, within = (laid_out({n: v.clone() for n, v in arguments.items()}, memory_format) for _ in range(2))
        expected = ops.reverse_step(rows=coefficients, row=row, **apart)
        result = ops.reverse_step(rows=coefficients, row=row, out=within["x"], **within)
        assert result is within["x"]
        assert same_bits(result, expected) and same_bits(within["history"][0], apart["history"][0])


def test_any_strides(backend, device):
    arguments = inputs((2, 3, 5, 7), "history written", device)
    coefficients, row = table(ROWS["history written"], device=device), torch.zeros((), dtype=torch.int64, device=device)
    expected = ops.reverse_step(rows=coefficients, row=row, **{n: v.clone() for n, v in arguments.items()})

    def spaced(value):
        return torch.stack([value, value], dim=-1)[..., 0]

    strided = {name: spaced(value) for name, value in arguments.items()}
    out = spaced(torch.empty_like(expected))
    assert ops.reverse_step(rows=coefficients, row=row, out=out, **strided) is out
    assert same_bits(out, expected)
    strided["history"] = spaced(arguments["history"])
    ops.reverse_step(rows=coefficients, row=row, out=strided["x"], **strided)
    assert same_bits(strided["x"], expected)


def test_nan_passes_the_clip(backend, device):
    x = torch.full((1, 1, 2, 2), float("nan"), device=device)
    coefficients = table(dict(p_x=1.0, bound=1.0, c_0=1.0), device=device)
    assert ops.reverse_step(x, None, coefficients, torch.zeros((), dtype=torch.int64, device=device)).isnan().all()


@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_threads_or_alignment(level):
    from tests.ops.conftest import running_on

    with running_on(f"cpu-{level}"):
        arguments = inputs((3, 3, 31, 33), "learned variance", "cpu", learned=True)
        arguments.pop("noise")
        counters = dict(rng=rng.make_rng(1), sample_ids=torch.arange(3))
        coefficients, row = table(ROWS["learned variance"]), torch.tensor(0)
        threads, results = torch.get_num_threads(), []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.reverse_step(rows=coefficients, row=row, **counters, **arguments))
        torch.set_num_threads(threads)
        assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
        for offset in (1, 3):
            shifted = torch.empty(arguments["x"].numel() + offset)[offset:].view(arguments["x"].shape)
            shifted.copy_(arguments["x"])
            result = ops.reverse_step(rows=coefficients, row=row, **counters, **{**arguments, "x": shifted})
            assert same_bits(result, results[0])


@pytest.mark.parametrize("bad", [-1, 2])
def test_row_out_of_range(backend, device, bad):
    arguments = inputs((3, 1, 4, 4), "ddpm", device)
    coefficients, row = table(DDPM, DDPM, device=device), torch.tensor([0, bad, 1], device=device)
    if on_device(backend):
        result = ops.reverse_step(rows=coefficients, row=row, **arguments)
        assert result[1].isnan().all() and result[[0, 2]].isfinite().all()
        return
    before = arguments["x"].clone()
    with pytest.raises(IndexError, match=rf"row must be in \[0, 2\), got {bad} at position 1"):
        ops.reverse_step(rows=coefficients, row=row, out=arguments["x"], **arguments)
    assert same_bits(arguments["x"], before)


MISSING = {
    "noise": dict(std=1.0, c_x=1.0),
    "extra": dict(g_x=1.0),
    "history": dict(c_2=1.0),
    "model_output": dict(c_m=1.0),
    "model_output of 2C channels": dict(l_1=1.0, std=1.0),
}


@pytest.mark.parametrize("argument", MISSING)
def test_missing_inputs(backend, device, argument):
    x = torch.zeros(1, 2, 3, 3, device=device)
    coefficients, row = table(MISSING[argument], device=device), torch.zeros((), dtype=torch.int64, device=device)
    model_output = torch.zeros_like(x) if "2C" in argument else None
    arguments = dict(noise=torch.ones_like(x)) if "2C" in argument else {}
    if on_device(backend):
        assert ops.reverse_step(x, model_output, coefficients, row, **arguments).isnan().all()
        return
    with pytest.raises(ValueError, match=f"{argument}.* must be a tensor where a row's"):
        ops.reverse_step(x, model_output, coefficients, row, out=x, **arguments)
    assert torch.equal(x, torch.zeros_like(x))


def test_empty_batches(backend, device):
    x = torch.zeros(0, 3, 4, 4, device=device)
    row = torch.zeros((), dtype=torch.int64, device=device)
    assert ops.reverse_step(x, None, table(DDPM, device=device), row).shape == x.shape


X = torch.zeros(2, 3, 4, 4)
GOOD = dict(x=X, model_output=X, rows=table(DDPM), row=torch.tensor(0), noise=X)
OVERLAPPING = torch.zeros(3, 3, 4, 4)
BAD = [
    (dict(x=X.int()), ValueError, "x must be float32"),
    (dict(model_output=X[:, :2]), ValueError, "model_output must have shape"),
    (dict(model_output=X.int()), ValueError, "model_output must be float32"),
    (dict(rows=torch.zeros(2, 5)), ValueError, r"rows must have shape \[R, 24\], got \[2, 5\]"),
    (dict(rows=table(DDPM, dtype=torch.float64)), ValueError, "rows must be torch.float32, got torch.float64"),
    (dict(row=torch.zeros(3, dtype=torch.int64)), ValueError, "row must have shape"),
    (dict(row=0), TypeError, "row must be a tensor, got int"),
    (dict(row=torch.zeros(())), ValueError, "row must be torch.int64"),
    (dict(noise=X.half()), ValueError, "noise must be torch.float32, got torch.float16"),
    (dict(extra=X[:1]), ValueError, "extra must have shape"),
    (dict(history=X), ValueError, "history must have shape"),
    (dict(out=X.double()), ValueError, "out must be torch.float32"),
    (dict(model_input=torch.zeros(3, 3, 4, 4)), ValueError, "model_input must have shape"),
    (dict(known=X), ValueError, "mask must be a tensor where known"),
    (dict(mask=X), ValueError, "known must be a tensor where mask is given"),
    (dict(mask=torch.zeros(2, 2, 4, 4), known=X), ValueError, "mask must have shape"),
    (dict(gain=torch.zeros(3)), ValueError, r"gain must have shape \[2\], got \[3\]"),
    (dict(bound=torch.zeros(2).double()), ValueError, "bound must be torch.float32"),
    (dict(rng=rng.make_rng(0)), TypeError, "sample_ids must be a tensor"),
    (dict(x=torch.zeros(2, 3, 4, 4, requires_grad=True)), RuntimeError,
     "x must not require grad: reverse_step has no gradient"),
    (dict(x=OVERLAPPING[:2], out=OVERLAPPING[1:]), ValueError, "out must be x itself or disjoint"),
    (dict(out=X, model_input=X), ValueError, "model_input must be disjoint from out"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.reverse_step(**{**GOOD, **change})
