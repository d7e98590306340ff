"""Where runs start: images to change, inversions, points between; conditions and outputs of every form."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, ops, schedules
from fastdiff.ops import rng
from fastdiff.processes import SigmaProcess
from fastdiff.samplers import ClassifierFree, Inpaint, Plan, ddpm, slerp
from fastdiff.samplers.request import from_strength

from .deterministic import ddim

SHAPE = (2, 3, 4, 4)
T = 100


@pytest.fixture
def process():
    return GaussianProcess(schedules.linear(T))


def model(x, t):
    return 0.3 * torch.tanh(x) + 0.001 * t.view(-1, 1, 1, 1)


def images(n=2):
    return torch.rand((n, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- From an image ----


@pytest.mark.parametrize("strength, first", [(1.0, 0), (0.6, 4), (0.35, 7), (0.01, 9)])
def test_strength_is_the_share_of_the_rows(backend, process, strength, first):
    """The run begins with the images noised to the level of its first row, and goes on as the plan does."""
    sampler, x_start, ids = Sampler(model, process, steps=10), images(), torch.arange(2)
    steps = list(sampler.stream(x_start=x_start, strength=strength, seed=4))
    assert [step.time for step in steps] == sampler.plan.time[first:].tolist()
    t = process.respace(10)
    alpha, sigma = t.alpha[9 - first], t.sigma[9 - first]
    x = (alpha * x_start + sigma * ops.normal(SHAPE, rng.make_rng(4), ids)).float()
    for row, step in enumerate(steps):
        output, noise = model(x, torch.full((2,), step.time)), ops.normal(SHAPE, rng.make_rng(4, row), ids, stream=1)
        x = ops.reverse_step(x, output, sampler.plan.table(), torch.tensor(first + row), noise=noise)
        torch.testing.assert_close(step.x, x, rtol=1e-5, atol=1e-5)


def test_the_start_is_that_of_diffusers(process):
    """Its img2img pipelines keep the last int(steps * strength) timesteps."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")  # which its pipeline asks for
    pipeline = SimpleNamespace(scheduler=diffusers.DDIMScheduler(T, timestep_spacing="trailing"))
    pipeline.scheduler.set_timesteps(20)
    get = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    for strength in (0.3, 0.77, 1.0):
        times, _ = get(pipeline, 20, strength, "cpu")
        sampler = Sampler(model, process, steps=pipeline.scheduler.timesteps)
        steps = list(sampler.stream(x_start=images(), strength=strength))
        assert [step.time for step in steps] == times.tolist()


def multistep(process, timesteps=None, *, clip):
    """Every row but the first reads the x0 before."""
    plan = ddpm(process, timesteps, clip=clip)
    later = torch.ones(len(plan))
    later[0] = 0
    return plan.replace(write=0, q_0=1, c_1=0.1 * later)


def test_a_solver_with_history_starts_afresh(process):
    sampler = Sampler(model, process, multistep, steps=10)
    steps = list(sampler.stream(x_start=images(), strength=0.5))
    assert [step.time for step in steps] == sampler.plan.time[5:].tolist()
    alone = Sampler(model, process, multistep, steps=sampler.plan.time[5:])
    t = process.respace(10)
    x = t.alpha[4] * images() + t.sigma[4] * ops.normal(SHAPE, rng.make_rng(0), torch.arange(2))
    torch.testing.assert_close(steps[-1].x, alone.sample(x=x.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "lms"])
def test_history_that_the_last_row_does_without(process, name):
    """The last row of DPM-Solver++ is of order 1: it alone stands alone, yet all that were asked for run."""
    weights = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    sampler = Sampler(model, process, name, steps=10, guidance=ClassifierFree(weights))
    plan, (alpha, sigma) = from_strength(sampler, 0.5)
    kept = process.respace(10).timestep_map[:5]
    assert torch.equal(plan.rows, Sampler(model, process, name, steps=kept).plan.replace(w=weights[5:]).rows)
    assert (alpha, sigma) == (process.alpha[kept[-1]].item(), process.sigma[kept[-1]].item())


@pytest.mark.parametrize("name", ["dpm_2", "dpmpp_2s", "dpm_singlestep", "dpmpp_2m"])
def test_from_an_image_in_noise_levels(name):
    """x = x_0 + sigma * noise, whatever the row that begins the run does and wherever its later stages lie."""
    view = SigmaProcess("edm")
    plan, (alpha, sigma) = from_strength(Sampler(model, view, name, steps=10), 0.5)
    nodes = view.nodes(10)
    assert plan.time[0] == nodes.time[5] and (alpha, sigma) == (1.0, pytest.approx(nodes.sigma[5].item(), rel=1e-12))


def test_a_run_of_two_stages_starts_at_a_first_stage(process):
    def staged(process, timesteps, *, clip):
        return Plan([90.5, 80.5, 70.5, 60.5], p_x=1, c_0=1, write=[0, -1, 0, -1], q_0=[1, 0, 1, 0], c_1=[0, 1, 0, 1])

    sampler = Sampler(model, process, staged)
    for strength in (0.75, 0.5, 0.25):  # the last row alone is none
        assert [step.time for step in sampler.stream(x_start=images(), strength=strength)] == [70.5, 60.5]


def test_rows_keep_their_numbers(process):
    """What adjusts a row is told its place in the whole plan."""
    seen = []

    def adjusting(process, timesteps, *, clip):
        plan = ddpm(process, timesteps, clip=clip)
        columns = {name: plan[name] for name in ("p_x", "p_m", "c_x", "c_0", "std", "bound")}
        return Plan(plan.time, adjust=lambda rows, row, *_: seen.append(int(row)), adjusted=True, **columns)

    Sampler(model, process, adjusting, steps=10).sample(x_start=images(), strength=0.3)
    assert seen == [7, 8, 9]


def test_image_to_image_within_a_mask(process):
    known, mask = images(), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    inpaint = Inpaint(known, mask, jump_length=1, jumps=2)
    samples = Sampler(model, process, steps=8).sample(x_start=known, strength=0.5, inpaint=inpaint)
    assert torch.equal(samples[..., 2:], known[..., 2:]) and not torch.equal(samples, known)


# ---- From a state ----


def test_a_given_state_takes_the_noises_place(process):
    sampler = Sampler(model, process, ddim, steps=5)
    noise = ops.normal(SHAPE, rng.make_rng(9), torch.arange(2))
    assert torch.equal(sampler.sample(x=noise), sampler.sample(SHAPE, seed=9))
    assert torch.equal(sampler.sample(2, x=noise[:1]), sampler.sample(x=noise[:1].expand(SHAPE)))


def test_inversion_then_generation_gives_the_images_back():
    """Each step back undoes one forward up to how much the prediction changes in between, so finer is closer."""
    process, errors = GaussianProcess(schedules.cosine(1000)), []

    def smooth(x, t):  # the exact prediction for data of deviation 0.5
        alpha, sigma = (table[t[0]].float() for table in (process.alpha, process.sigma))
        return sigma * x / (alpha**2 / 4 + sigma**2)

    for steps in (25, 50, 100):
        options = {"steps": steps, "clip": None}
        noise = Sampler(smooth, process, partial(ddim, invert=True), **options).sample(x=images())
        back = Sampler(smooth, process, ddim, **options).sample(x=noise)
        errors.append((back - images()).abs().max().item())
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2] and errors[2] < 0.05


def test_batches_take_their_own_states(process):
    sampler, x = Sampler(model, process, steps=4), torch.randn(5, 3, 4, 4)
    assert torch.equal(sampler.sample(x=x, batch_size=2), sampler.sample(x=x))
    started = sampler.sample(x_start=x, strength=0.5)
    assert torch.equal(sampler.sample(x_start=x, strength=0.5, batch_size=3), started)


def test_slerp():
    a, b = torch.randn(2, 3, 1000, 1, 1, generator=torch.Generator().manual_seed(2)).unbind()
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    lengths = slerp(a, b, torch.tensor([0.3, 0.5, 0.8])).flatten(1).norm(dim=1)
    assert (lengths / 1000**0.5 - 1).abs().max() < 0.1
    x, y = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    torch.testing.assert_close(slerp(x, y, 1 / 3), 2 * torch.tensor([[[3**0.5 / 2, 0.5]]]))
    torch.testing.assert_close(slerp(x, x, 0.25), x)
    with pytest.raises(ValueError, match=r"b must have samples of shape \[1, 2\], got \[2, 2\]"):
        slerp(x, torch.zeros(1, 2, 2), 0.5)
    for a, b, weight, name in ((2, 3, 0.5, "a"), (3, 2, 0.5, "b"), (3, 1, [0.1, 0.2], "weight")):
        with pytest.raises(ValueError, match=f"{name} must have 1 or n = 3 entries, got 2"):
            slerp(torch.ones(a, 2), torch.ones(b, 2), weight)


# ---- Conditions ----


def test_labels_are_the_third_argument_and_batches_take_their_own(process):
    seen = []

    def labelled(x, t, y):
        seen.append(y.tolist())
        return model(x, t) + 0.1 * y.view(-1, 1, 1, 1)

    sampler = Sampler(labelled, process, steps=1)
    whole = sampler.sample((5, 3, 4, 4), condition=torch.arange(5))
    batched = sampler.sample((5, 3, 4, 4), condition=[0, 1, 2, 3, 4], batch_size=2)
    assert seen == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4, 4]] and torch.equal(whole, batched)
    sampler.sample((3, 3, 4, 4), condition=7)
    assert seen[-1] == [7, 7, 7]


def test_keywords(process):
    seen = {}

    def conditioned(x, t, **keywords):
        seen.update(keywords)
        return model(x, t)

    condition = {"text": torch.arange(10.0).view(5, 2), "mask": torch.ones(1, 4), "flag": True, "cross": None}
    Sampler(conditioned, process, steps=1).sample((5, 3, 4, 4), condition=condition, batch_size=2)
    assert seen["text"].tolist() == [[8, 9], [8, 9]] and seen["mask"].shape == (2, 4)
    assert seen["flag"] is True and seen["cross"] is None


def test_floating_conditions_go_to_the_networks_dtype(process):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, t, text, y):
            assert x.dtype is text.dtype is torch.bfloat16 and y.dtype is torch.int64
            return self.weight * x

    condition = {"text": torch.ones(2, 3), "y": torch.tensor([1, 2])}
    assert Sampler(Half(), process, steps=1).sample(SHAPE, condition=condition).dtype is torch.float32


@pytest.mark.parametrize("wrap", [
    lambda m: (m, None), lambda m: [m], lambda m: {"sample": m, "other": None}, lambda m: {"pred": m},
    lambda m: SimpleNamespace(sample=m),
])  # fmt: skip
def test_outputs_of_every_form(process, wrap):
    expected = Sampler(model, process, steps=3).sample(SHAPE)
    assert torch.equal(Sampler(lambda x, t: wrap(model(x, t)), process, steps=3).sample(SHAPE), expected)


def test_diffusers_networks_as_they_are(process):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4, 4), norm_num_groups=2, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1, num_class_embeds=3, attention_head_dim=4,
    ).eval()  # fmt: skip
    samples = Sampler(net, process, steps=2, precision="fp32").sample((2, 3, 8, 8), condition=[0, 2])
    plain = Sampler(lambda x, t: net(x, t, torch.tensor([0, 2])).sample, process, steps=2)
    assert torch.equal(samples, plain.sample((2, 3, 8, 8)))


# ---- Errors ----


@pytest.mark.parametrize("arguments, kind, message", [
    ({"x": images(3)}, ValueError, r"x must have n = 2 samples, or 1 for all, got shape \[3, 3, 4, 4\]"),
    ({"x": images(), "x_start": images()}, ValueError, "x must be None where x_start is given"),
    ({"x_start": torch.zeros(2, 3, 5, 4)}, ValueError, r"x_start must have samples of shape \[3, 4, 4\], got"),
    ({"x_start": images(), "strength": 0}, ValueError, r"strength must be in \(0, 1\], got 0"),
    ({"x_start": images(), "strength": 1.1}, ValueError, r"strength must be in \(0, 1\], got 1\.1"),
    ({"strength": 0.5}, ValueError, "strength must be 1 without x_start, got 0.5"),
    ({"condition": torch.zeros(3)}, ValueError, r"condition must have n = 2 samples, or 1 for all, got shape \[3\]"),
    ({"condition": {"y": torch.zeros(3)}}, ValueError, "condition's y must have n = 2 samples"),
    ({"x": images().numpy()}, TypeError, "x must be a tensor, got ndarray"),
    ({"x_start": [0.0]}, TypeError, "x_start must be a tensor, got list"),
    ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
    ({"seed": None}, TypeError, "seed must be an int, got None"),
    ({"sample_ids": [0, 1.0]}, TypeError, r"sample_ids must be ints, got \[0, 1.0\]"),
    ({"sample_ids": 3}, TypeError, "sample_ids must be ints, got 3"),
    ({"condition": "a cat"}, TypeError, "condition must be labels, a tensor or a dict of keywords, got str"),
])  # fmt: skip
def test_bad_arguments(process, arguments, kind, message):
    sampler = Sampler(model, process, steps=2)
    for method in (sampler.sample, sampler.stream):
        with pytest.raises(kind, match=message):
            method(SHAPE, **arguments)
