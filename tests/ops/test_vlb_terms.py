"""`vlb_terms` and its gradient on every backend: against float64 PyTorch, improved-diffusion, and mpmath."""

import functools
import math

import mpmath
import pytest
import torch
from torch.nn.functional import logsigmoid

from fastdiff import GaussianProcess, ops, schedules
from fastdiff.ops import vlb_columns
from fastdiff.processes.likelihood import vlb_table
from fastdiff.processes.variance import KINDS as VARIANCES
from tests.ops.accuracy import assert_in_budget, error_of, same_bits
from tests.ops.conftest import on_device
from tests.ops.losses import (
    DTYPES,
    SHAPES,
    T,
    at,
    clean,
    formats,
    gaussian,
    images,
    in_pytorch,
    process,
    with_gradient,
)
from tests.processes.golden import error, load, network

CDFS = ("tanh", "erf")


def logit(u):
    return math.sqrt(2 / math.pi) * 2 * (u + 0.044715 * u**3)


def log_mass(x0, mean, log_variance, cdf):
    """ln of the decoder's probability, in logarithms of distribution functions; for autograd."""
    inverse_std, centred = torch.exp(-log_variance / 2), x0 - mean
    upper, lower = inverse_std * (centred + 1 / 255), inverse_std * (centred - 1 / 255)
    first, last = x0 < -0.999, x0 > 0.999
    mirrored = last | (~first & (centred > 0))
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    if cdf == "erf":
        log_cdf = torch.special.log_ndtr
        ends, between = log_cdf(upper), log_cdf(upper) + torch.log(-torch.expm1(log_cdf(lower) - log_cdf(upper)))
    else:
        ends, width = logsigmoid(logit(upper)), logit(upper) - logit(lower)
        between = ends + logsigmoid(-logit(lower)) + torch.log(-torch.expm1(-width))
    result = torch.where(first | last, ends, between)
    return result.clamp(min=math.log(1e-12)) if cdf == "tanh" else result


def formula(x_start, x_t, t, table, flip=None, clip=None, cdf="tanh", detach_mean=False, weight=None,
            sample_weight=None):  # fmt: skip
    """What everybody writes, (model_output, dtype) -> terms [B] in bits."""

    def terms(output, dtype):
        x0, x = clean(x_start, flip, dtype), x_t.cpu().to(dtype)
        C = x0.shape[1]
        m, v = output[:, :C], output[:, C:] if output.shape[1] > C else 0
        m = m.detach() if detach_mean else m
        row = {name: at(table.cpu().to(dtype)[:, i], t, x0) for i, name in enumerate(vlb_columns.NAMES)}
        estimate = row["p_x"] * x + row["p_m"] * m
        estimate = estimate if clip is None else estimate.clamp(-clip, clip)
        mean = torch.where(row["raw"] != 0, m, row["r_0"] * estimate + row["r_x"] * x)
        truth = row["r_0"] * x0 + row["r_x"] * x
        log_variance = row["l_0"] + row["l_1"] * v + torch.zeros_like(m)
        kl = -1 + log_variance - row["l_q"] + torch.exp(row["l_q"] - log_variance)
        kl = 0.5 * (kl + (truth - mean) ** 2 * torch.exp(-log_variance))
        decoder = (t.cpu() == 0).reshape(-1, *(1,) * (x0.dim() - 1))
        nats = torch.where(decoder, -log_mass(x0, mean, log_variance, cdf), kl)
        bits = nats.flatten(1).mean(1) / math.log(2)
        bits = bits if weight is None else bits * weight.cpu().to(dtype)[t.cpu()]
        return bits if sample_weight is None else bits * sample_weight.cpu().to(dtype)

    return terms


def inputs(shape, x_dtype, dtype, device, prediction="eps", variance="learned_range", seed=0):
    """A network that is nearly right: model_output, x_start, x_t, t."""
    t, p, seed = torch.tensor([0, T - 1, 500, 1][: shape[0]]), process(prediction), 10 * seed
    x_start, noise, wrong = images(shape, x_dtype, device, seed), gaussian(shape, 3 + seed), gaussian(shape, 4 + seed)
    x0 = clean(x_start, None, torch.float64)
    x_t = at(p.alpha, t, x0) * x0 + at(p.sigma, t, x0) * noise
    scale = {"xprev": 0.03 * at(p.sigma, t, x0), "score": 0.3 / at(p.sigma, t, x0)}.get(prediction, 0.3)
    output = p.target(x0, t, noise) + scale * wrong
    if variance.startswith("learned"):
        v = 0.5 * gaussian(shape, 5 + seed) - 4 * (variance == "learned")
        output = torch.cat([output, v], dim=1)
    return output.to(device, dtype), x_start, x_t.to(device, dtype), t.to(device)


@functools.cache
def eager_errors(shape, prediction, variance, options, draws=8):
    """float32 eager's errors, [value, gradient] of each sample: the largest of several draws, for one is luck."""
    found = []
    for seed in range(draws):
        output, *arguments = inputs(shape, torch.float32, torch.float32, "cpu", prediction, variance, seed)
        table, upstream = vlb_table(process(prediction), variance).float(), torch.ones(shape[0])
        exact, plain = in_pytorch(formula(*arguments, table, **dict(options)), output, upstream)
        found.append([[error_of(a, b) for a, b in zip(*map(torch.split, each, (1, 1)), strict=True)]
                      for each in zip(plain, exact, strict=True)])  # fmt: skip
    return torch.tensor(found).amax(0).tolist()


def check(shape, x_dtype, dtype, device, prediction="eps", variance="learned_range", x_format=None, weights=None,
          memory_formats=None, **options):  # fmt: skip
    output, x_start, x_t, t = inputs(shape, x_dtype, dtype, device, prediction, variance)
    table, upstream = vlb_table(process(prediction), variance).float().to(device), torch.ones(shape[0], device=device)
    usual = eager_errors(shape, prediction, variance, tuple((k, v) for k, v in options.items() if k != "flip"))
    options |= weights or {}
    exact, plain = in_pytorch(formula(x_start, x_t, t, table, **options), output, upstream)
    for memory_format in memory_formats or formats(shape):
        others = (each.contiguous(memory_format=x_format or memory_format) for each in (x_start, x_t))
        given, arguments = output.contiguous(memory_format=memory_format), (*others, t, table)
        results = with_gradient(lambda m, a=arguments: ops.vlb_terms(m, *a, **options), given, upstream)
        assert results[0].dtype is torch.float32 and results[1].dtype is dtype
        assert results[1].stride() == given.stride()
        for *each, errors in zip(results, exact, plain, usual, strict=True):
            for result, wide, narrow, most in zip(*(value.split(1) for value in each), errors, strict=True):
                assert_in_budget(result, wide, max(error_of(narrow, wide), most))


@pytest.mark.parametrize("x_dtype", [torch.uint8, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_of_every_dtype(backend, device, x_dtype, dtype):
    flip = torch.tensor([True, False, True], device=device)
    check(SHAPES["odd width, last block discards lanes"], x_dtype, dtype, device, flip=flip)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_budget_of_every_shape(backend, device, shape):
    check(shape, torch.uint8, torch.float32, device, cdf="erf")
    check(shape, torch.float32, torch.bfloat16, device, variance="fixed_large")


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "xprev"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [None, 1.0], ids=["not clipped", "clipped"])
def test_budget_of_every_kind(backend, device, prediction, variance, clip):
    for cdf, memory_format in zip(CDFS, formats((4, 3, 4, 6)), strict=True):
        check((4, 3, 4, 6), torch.uint8, torch.float32, device, prediction, variance, cdf=cdf, clip=clip,
              memory_formats=[memory_format])  # fmt: skip


@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 5, 7), (2, 12, 4, 4)], ids=str)
def test_inputs_in_another_layout(backend, device, shape, x_format):
    check(shape, torch.uint8, torch.float32, device, x_format=x_format)
    check(shape, torch.uint8, torch.float32, device, x_format=x_format, variance="fixed_small")


def test_weights_and_the_hybrid_gradient(backend, device):
    weight, sample_weight = process().snr.clamp(max=5).float(), gaussian(4, 9).float()
    weights = dict(weight=weight.to(device), sample_weight=sample_weight.to(device))
    check((4, 3, 5, 7), torch.uint8, torch.float32, device, weights=weights, detach_mean=True)
    output, *others = inputs((4, 3, 5, 7), torch.uint8, torch.float32, device)
    table, upstream = vlb_table(process(), "learned_range").float().to(device), torch.ones(4, device=device)
    _, gradient = with_gradient(lambda m: ops.vlb_terms(m, *others, table, detach_mean=True), output, upstream)
    assert not gradient[:, :3].any() and gradient[:, 3:].all()


def test_float64_and_gradcheck(backend, device):
    if on_device(backend):
        pytest.skip(f"{backend} has no float64")
    for prediction, cdf in (("eps", "tanh"), ("xprev", "erf")):
        output, x_start, x_t, t = inputs((4, 2, 3, 5), torch.uint8, torch.float64, device, prediction)
        table, upstream = vlb_table(process(prediction), "learned_range"), torch.ones(4, dtype=torch.float64)
        exact, _ = in_pytorch(formula(x_start, x_t, t, table, cdf=cdf), output, upstream)
        function = functools.partial(ops.vlb_terms, x_start=x_start, x_t=x_t, t=t, table=table, cdf=cdf)
        results = with_gradient(function, output, upstream)
        for result, wide in zip(results, exact, strict=True):
            assert torch.allclose(result, wide, rtol=1e-9, atol=1e-12)
        leaf = output.contiguous(memory_format=torch.channels_last).requires_grad_()
        assert torch.autograd.gradcheck(function, (leaf,), eps=1e-7, atol=1e-5)


# ---- The decoder ----

DECODER = torch.tensor([[0, 0, 0, 0, 1, 0, 1, 0.0]])  # raw mean, v is the log-variance


def decode(x0, mean, log_std, device, cdf="erf", dtype=torch.float32):
    """ln P of each x0 [N], and its gradient in mean and log-variance, by way of the op."""
    column = lambda value: value.to(device, dtype).reshape(-1, 1, 1, 1)  # noqa: E731
    output = torch.cat([column(mean), column(2 * log_std)], dim=1)
    t = torch.zeros(len(x0), dtype=torch.int64, device=device)
    arguments = column(x0), torch.zeros_like(column(x0)), t, DECODER.to(device, dtype)
    value, gradient = with_gradient(
        lambda m: ops.vlb_terms(m, *arguments, cdf=cdf), output, -math.log(2) * torch.ones(len(x0), device=device)
    )
    return -math.log(2) * value.cpu().double(), *gradient.flatten(1).cpu().double().t()


def true_mass(x0, mean, log_std):
    """ln P and its derivatives in mean and log-variance, to 50 digits."""
    with mpmath.workdps(60):
        x0, mean, std = mpmath.mpf(x0), mpmath.mpf(mean), mpmath.exp(mpmath.mpf(log_std))

        def bound(side):
            outermost = x0 > 0.999 if side > 0 else x0 < -0.999
            return mpmath.inf * side if outermost else (x0 + side / mpmath.mpf(255) - mean) / std

        upper, lower = bound(1), bound(-1)
        # Far from 0 the mass on one side is a difference of tails.
        if lower > 0 or upper == mpmath.inf:
            upper, lower = -lower, -upper
            sign = -1
        else:
            sign = 1
        mass = mpmath.ncdf(upper) - (mpmath.ncdf(lower) if lower != -mpmath.inf else 0)
        ends = [(u, mpmath.npdf(u)) for u in (upper, lower)]
        shift = (ends[0][1] - ends[1][1]) / mass
        stretch = sum(s * u * d for (u, d), s in zip(ends, (1, -1), strict=True) if mpmath.isfinite(u)) / mass
        return float(mpmath.log(mass)), float(-sign * shift / std), float(-stretch / 2)


OUTLIERS = [0.0, 0.3, 1.0, 3.0, 8.0, 14.0, 40.0, 200.0, 1e3]  # deviations
LOG_STDS = [-9.0, -5.6, -4.5, -3.0, 0.0, 1.0]  # of bins of 60 deviations to 0.003


@pytest.mark.parametrize("x0", [-1.0, 1.0, -127 / 255, 1 / 255])
def test_tails_are_exact(backend, device, x0):
    """A thousand deviations away nothing overflows, and every digit of value and gradient is right."""
    cases = [(x0, x0 + side * n * math.exp(s), s) for n in OUTLIERS for s in LOG_STDS for side in (-1, 1)]
    x, mean, log_std = (torch.tensor(each).float() for each in zip(*cases, strict=True))
    results = decode(x, mean, log_std, device)
    expected = [true_mass(*each) for each in zip(x.tolist(), mean.tolist(), log_std.tolist(), strict=True)]
    for result, wide in zip(results, zip(*expected, strict=True), strict=True):
        wide = torch.tensor(wide, dtype=torch.float64)
        assert result.isfinite().all()
        # (x0 - mean) and u have a rounding each, which u^2 and a gradient like u^2 double.
        deviations = (x - mean).double().abs() * torch.exp(-log_std.double())
        scale = wide.abs() + 1e-6 + (0 if result is results[0] else deviations)
        assert ((result - wide).abs() / scale).max() < 4e-6


@pytest.mark.parametrize("cdf", CDFS)
def test_outermost_bins_have_the_whole_tail(backend, device, cdf):
    """At +-1 a mean far beyond the end is certain of its value; just inside it is certain of another."""
    x0 = torch.tensor([-1.0, 1.0, -0.999 + 1e-4, 0.999 - 1e-4])
    mean = torch.tensor([-3.0, 3.0, -3.0, 3.0])
    value, by_mean, by_log_variance = decode(x0, mean, torch.full((4,), -4.0), device, cdf)
    assert value[:2].abs().max() < 1e-6 and by_mean[:2].abs().max() < 1e-6 and by_log_variance[:2].abs().max() < 1e-6
    assert (value[2:] < -27).all()


def test_the_probability_of_the_approximation_has_a_floor(backend, device):
    far = torch.tensor([-1.0, 0.0, 1.0])
    value, *gradients = decode(far, -far + 10 * (far == 0), torch.full((3,), -5.0), device, "tanh")
    assert torch.allclose(value, torch.full((3,), math.log(1e-12), dtype=torch.float64), rtol=1e-6)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("cdf", CDFS)
def test_probabilities_of_all_levels_add_up(backend, device, cdf):
    levels = torch.arange(256) / 127.5 - 1
    for mean, log_std in ((0.1, -3.0), (0.99, -1.0), (-0.7, 1.0), (0.5, -5.5)):
        value, *_ = decode(levels, torch.full((256,), mean), torch.full((256,), log_std), device, cdf)
        assert value.exp().sum() == pytest.approx(1, abs=2e-4)


def test_nan_is_nan(backend, device):
    nan = torch.tensor([float("nan")])
    for cdf in CDFS:
        for each in decode(torch.zeros(1), nan, torch.zeros(1), device, cdf):
            assert each.isnan().all()


# ---- improved-diffusion ----


def apart(value, reference):
    """Largest relative difference of numbers for samples."""
    return error(value[:, None], reference[:, None])


def recorded_output(recorded, name, prediction, variance, x, t):
    constants = {key: recorded[f"{name}.model.{key}"] for key in ("a", "a2", "b", "p", "q")}
    output = network(constants, prediction)(x, t)
    if not variance.startswith("learned"):
        return output
    p, q = (constants[key].to(x.dtype).view(1, -1, 1, 1) for key in ("p", "q"))
    v = (-4 if variance == "learned" else 0.1) + p * torch.tanh(x) + q * torch.sin(t.to(x.dtype) / 50).view(-1, 1, 1, 1)
    return torch.cat([output, v], dim=1)


def test_decoder_is_improved_diffusions(backend, device):
    recorded = load("losses")
    x, means, log_scales = (recorded[f"likelihood.{name}"] for name in ("x", "means", "log_scales"))
    exact = recorded["likelihood.log_likelihood_f64"]
    value, *_ = decode(x, means, log_scales, device, "tanh")
    assert torch.allclose(value, exact, rtol=2e-5, atol=2e-4)
    if not on_device(backend):
        value, *_ = decode(x, means, log_scales, device, "tanh", torch.float64)
        lost = 2.0**-52 / exact.exp()  # theirs is a difference of numbers near 1
        assert ((value - exact).abs() <= 1e-9 * exact.abs() + lost).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", ["cosine100", "linear1000"])
def test_training_losses_are_improved_diffusions(backend, device, name, dtype):
    if dtype is torch.float64 and on_device(backend):
        pytest.skip(f"{backend} has no float64")
    recorded, tolerance = load("losses"), 4e-4 if dtype is torch.float32 else 1e-9
    steps = 100 if name == "cosine100" else 1000
    prefix = f"{name}.{'f32' if dtype is torch.float32 else 'f64'}."
    kinds = {key[len(prefix) :].split(".training_losses")[0] for key in recorded if key.startswith(prefix)}
    assert len(kinds) >= 4
    t, x_start, noise = (recorded[f"{name}.{key}"].to(device) for key in ("t", "x_start", "noise"))
    x_t = recorded[f"{name}.q_sample"].to(dtype)
    for kind in sorted(kinds):
        prediction, variance, rescaled = kind.split(".")
        p = GaussianProcess((schedules.linear if "linear" in name else schedules.cosine)(steps), prediction)
        time = recorded[f"{name}.t"] * (1000 / steps) if rescaled == "rescale1" else recorded[f"{name}.t"]
        output = recorded_output(recorded, name, prediction, variance, x_t, time).to(device)
        table = vlb_table(p, variance).to(device, dtype)
        terms = ops.vlb_terms(output, x_start, x_t.to(device), t, table).cpu()
        expected = recorded[f"{prefix}{kind}.training_losses.rescaled_kl.loss"]
        cancelled = 2.0**-22 / math.log(2) * steps * (dtype is torch.float32)  # their -1 + ... + exp(...) near 0
        assert torch.allclose((terms * steps).double(), expected.double(), rtol=tolerance, atol=cancelled)
        losses = p.loss(output, x_start, t, noise).cpu()
        mse = f"{prefix}{kind}.training_losses.rescaled_mse"
        assert apart(losses, recorded[f"{mse}.mse"]) < tolerance
        if variance.startswith("learned"):
            assert torch.allclose((terms * steps / 1000).double(), recorded[f"{mse}.vb"].double(), rtol=tolerance,
                                  atol=cancelled / 1000)  # fmt: skip


@pytest.mark.parametrize("name", ["cosine20", "custom20"])
def test_bounds_are_improved_diffusions(backend, device, name):
    recorded, dtype = load("losses"), torch.float32 if on_device(backend) else torch.float64
    x_start, noise, t = recorded[f"{name}.x_start"], recorded[f"{name}.noise"], torch.arange(19, -1, -1)
    kinds = [key.split(".")[1:] for key in recorded if key.startswith(name) and key.endswith(".f64.vb")]
    assert len(kinds) == 18
    for prediction, variance, rescaled, clipped, *_ in kinds:
        p = GaussianProcess(recorded[f"{name}.betas"], prediction)
        x0 = x_start.double().expand(20, -1, -1, -1)
        x_t = at(p.alpha, t, x0) * x0 + at(p.sigma, t, x0) * noise[:, 0].double()
        time = t * 50.0 if rescaled == "rescale1" else t
        output = recorded_output(recorded, name, prediction, variance, x_t, time)
        terms = p.vlb_terms(
            output.to(device, dtype), x0.to(device, dtype), x_t.to(device, dtype), t.to(device), variance=variance,
            clip=1.0 if clipped == "clip1" else None,
        )  # fmt: skip
        expected = recorded[f"{name}.{prediction}.{variance}.{rescaled}.{clipped}.f64.vb"]
        assert apart(terms.cpu(), expected[0]) < (1e-9 if dtype is torch.float64 else 4e-4)


# ---- The contract ----


def test_any_strides(backend, device):
    output, x_start, x_t, t = inputs((4, 6, 8, 10), torch.float32, torch.float32, device)
    table = vlb_table(process(), "learned_range").float().to(device)
    part = (slice(None, None, 2), slice(None, None, 2), slice(None), slice(None, None, 2))
    strided = torch.cat([output[:, ::2], output[:, ::2]], dim=1)[..., ::2][::2][:, :6]
    given = x_start[part], x_t[part], t[::2]
    apart = ops.vlb_terms(strided.contiguous(), *(value.contiguous() for value in given), table)
    wide = torch.stack([table, table], dim=1).flatten(0, 1)[::2]
    assert same_bits(ops.vlb_terms(strided, *given, wide), apart)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (4, 3, 8, 8)], ids=str)
def test_bits_do_not_depend_on_batch_or_position(backend, device, shape, memory_format):
    arguments = [
        each.contiguous(memory_format=memory_format) if each.dim() == 4 else each
        for each in inputs(shape, torch.uint8, torch.float32, device)
    ]
    table = vlb_table(process(), "learned_range").float().to(device)

    def run(part):
        m, *others = (each[part] for each in arguments)
        return with_gradient(lambda m: ops.vlb_terms(m, *others, table), m, torch.ones(len(m), device=device))

    together = run(slice(None))
    for b in range(4):
        assert all(same_bits(a, c[b : b + 1]) for a, c in zip(run(slice(b, b + 1)), together, strict=True))


def test_bits_do_not_depend_on_threads(backend, device):
    if not backend.startswith("cpu"):
        pytest.skip("threads are the CPU's")
    arguments = inputs((2, 3, 131, 133), torch.uint8, torch.float32, device)
    table, before, results = vlb_table(process(), "learned_range").float(), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(with_gradient(lambda m: ops.vlb_terms(m, *arguments[1:], table), arguments[0], torch.ones(2)))
    torch.set_num_threads(before)
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [-1, T])
def test_t_out_of_range(backend, device, bad):
    output, x_start, x_t, t = inputs((3, 1, 4, 4), torch.uint8, torch.float32, device)
    t[1], table = bad, vlb_table(process(), "learned_range").float().to(device)
    function = lambda m: ops.vlb_terms(m, x_start, x_t, t, table, weight=torch.ones(T, device=device))  # noqa: E731
    if on_device(backend):
        for result in with_gradient(function, output, torch.ones(3, device=device)):
            assert result[1].isnan().all() and result[[0, 2]].isfinite().all()
    else:
        with pytest.raises(IndexError, match=rf"t must be in \[0, 1000\), got {bad} at position 1"):
            function(output)


def test_a_variance_that_is_not_there(backend, device):
    output, x_start, x_t, t = inputs((3, 2, 4, 4), torch.uint8, torch.float32, device, variance="fixed_small")
    table = vlb_table(process(), "learned").float().to(device)
    if on_device(backend):
        assert ops.vlb_terms(output, x_start, x_t, t, table).isnan().all()
    else:
        with pytest.raises(ValueError, match="model_output must have 2C channels where table's l_1 is not 0"):
            ops.vlb_terms(output, x_start, x_t, t, table)


def test_a_fixed_variance_does_not_read_the_channels(backend, device):
    output, x_start, x_t, t = inputs((3, 2, 4, 4), torch.uint8, torch.float32, device)
    output[:, 2:] = float("nan")
    table, upstream = vlb_table(process(), "fixed_small").float().to(device), torch.ones(3, device=device)
    value, gradient = with_gradient(lambda m: ops.vlb_terms(m, x_start, x_t, t, table), output, upstream)
    assert value.isfinite().all() and gradient[:, :2].all() and not gradient[:, 2:].any()
    output[:, :2] = 1e25  # whose square is infinite
    _, gradient = with_gradient(lambda m: ops.vlb_terms(m, x_start, x_t, t, table), output, upstream)
    assert not gradient[:, 2:].any()


def test_empty_batches_and_samples(backend, device):
    table = vlb_table(process(), "fixed_small").float().to(device)
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        x, t = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
        value, gradient = with_gradient(lambda m, x=x, t=t: ops.vlb_terms(m, x, x, t, table), x, torch.zeros(shape[0]))
        assert value.shape == shape[:1] and gradient.shape == shape and value.isnan().all()


IMAGE = torch.zeros(2, 3, 4, 4)
GOOD = dict(model_output=IMAGE, x_start=IMAGE, x_t=IMAGE, t=torch.zeros(2, dtype=torch.int64), table=torch.zeros(T, 8))
BAD = [
    (dict(model_output=[1.0]), TypeError, "model_output must be a tensor"),
    (dict(model_output=torch.zeros(2, 4, 4, 4)), ValueError, r"model_output must have shape \[B, C or 2C, \*\]"),
    (dict(x_start=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), ValueError, "x_start must be float32"),
    (dict(x_t=torch.zeros(2, 3, 4, 5)), ValueError, r"x_t must have shape \[2, 3, 4, 4\], got \[2, 3, 4, 5\]"),
    (dict(x_t=torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), ValueError, "x_t must be float32"),
    (dict(t=torch.zeros(2)), ValueError, "t must be torch.int64, got torch.float32"),
    (dict(table=torch.zeros(T, 7)), ValueError, r"table must have shape \[T, 8\], got \[1000, 7\]"),
    (dict(table=torch.zeros(T, 8).double()), ValueError, "table must be torch.float32, got torch.float64"),
    (dict(weight=torch.zeros(2)), ValueError, r"weight must have shape \[1000\], got \[2\]"),
    (dict(sample_weight=torch.zeros(3)), ValueError, r"sample_weight must have shape \[2\], got \[3\]"),
    (dict(flip=torch.zeros(2)), ValueError, "flip must be torch.bool"),
    (dict(clip=0.0), ValueError, "clip must be positive or None, got 0.0"),
    (dict(cdf="logistic"), ValueError, "cdf must be one of tanh, erf, got 'logistic'"),
    (dict(detach_mean=True), ValueError, "detach_mean must be False where model_output has no variance channels"),
    (dict(x_t=torch.zeros(2, 3, 4, 4, requires_grad=True)), RuntimeError, "x_t must not require grad"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.vlb_terms(**{**GOOD, **change})


def test_tables_of_unknown_variances_are_refused():
    with pytest.raises(ValueError, match="variance must be one of fixed_small, fixed_large, learned, learned_range"):
        process().vlb_terms(IMAGE, IMAGE, IMAGE, GOOD["t"], variance="small")


def test_columns_are_those_of_the_kernels():
    if ops.native.unavailable():
        pytest.skip(ops.native.unavailable())
    assert ops.native._C.VLB_COLUMNS == vlb_columns.WIDTH
