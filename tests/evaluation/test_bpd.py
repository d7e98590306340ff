"""The bound in bits per dimension: improved-diffusion's numbers, the estimate, the command."""

import json

import pytest
import torch

from fastdiff import GaussianProcess, cli, schedules
from fastdiff.evaluation import bpd
from tests.cli.runs import save_images, train
from tests.processes.golden import error, load, network

KINDS = sorted({tuple(key.split(".")[:4]) for key in load("bpd") if key.endswith("total_bpd")})


@pytest.mark.parametrize("prediction, variance, rescale, clip", KINDS)
def test_the_full_bound_is_improved_diffusions(prediction, variance, rescale, clip):
    recorded = load("bpd")
    process = GaussianProcess(recorded["betas"], prediction, variance)
    constants = {name: recorded[f"model.{name}"] for name in ("a", "a2", "b", "p", "q")}
    bound = bpd.full(
        network(constants, prediction, variance), process, recorded["x_start"].double(),
        clip=1.0 if clip == "clip1" else None, noise=lambda t: recorded["noise"][19 - t].double(),
    )  # fmt: skip
    prefix = f"{prediction}.{variance}.{rescale}.{clip}.f64"
    for name, value in (("total_bpd", bound.total), ("prior_bpd", bound.prior)):
        torch.testing.assert_close(value, recorded[f"{prefix}.{name}"], rtol=1e-9, atol=1e-12)
    for name, value in (("vb", bound.vb), ("xstart_mse", bound.x0_mse), ("mse", bound.eps_mse)):
        assert error(value.flip(1), recorded[f"{prefix}.{name}"]) < 1e-9


def model(x, t):
    return 0.5 * x + 0.1 * torch.cos(t / 5).view(-1, 1, 1, 1)


def test_the_estimate_is_unbiased():
    """Its mean over many images is the full sum's, within its standard error; of all timesteps, it is the sum."""
    process = GaussianProcess(schedules.cosine(20))
    images = torch.randint(0, 256, (1, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    many = images.expand(2000, -1, -1, -1)
    exact, found = bpd.full(model, process, many).total, bpd.stratified(model, process, many, 5)
    mean, half_width = bpd.estimate(found)
    assert abs(mean - exact.mean().item()) < 2 * half_width and half_width < 0.1 * mean
    every = bpd.stratified(model, process, many, 20)
    assert every.std() < 0.7 * found.std() and abs(every.mean() - exact.mean()) < 5 * exact.std() / 2000**0.5 * 2**0.5


def test_sample_ids_decide_the_noise():
    process, images = GaussianProcess(schedules.cosine(20)), torch.full((4, 1, 4, 4), 90, dtype=torch.uint8)
    whole = bpd.full(model, process, images).total
    part = bpd.full(model, process, images[:2], sample_ids=torch.arange(2, 4)).total
    torch.testing.assert_close(part, whole[2:])
    assert not torch.equal(whole[:2], whole[2:])
    with pytest.raises(ValueError, match="timesteps must divide the process' 20, got 7"):
        bpd.stratified(model, process, images, 7)


class Energy(torch.nn.Module):
    """A score that is a gradient, which the model takes itself; in training it is noise."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), 0.1, dtype=dtype))

    def forward(self, x, t):
        assert x.dtype is self.weight.dtype
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((self.weight * x.square() / 2).sum(), x)
        return (torch.randn_like(x) if self.training else gradient,)


def test_models_run_as_in_a_sampler():
    """Without gradients, which they may turn on; in evaluation mode and their own dtype; of a tuple the first."""
    process, images = GaussianProcess(schedules.cosine(20)), torch.arange(64, dtype=torch.uint8).view(4, 1, 4, 4)
    expected, network = bpd.full(lambda x, t: 0.1 * x, process, images).total, Energy()
    found = bpd.full(network, process, images, sample_ids=range(4)).total
    assert torch.equal(found, expected) and network.training
    torch.testing.assert_close(bpd.stratified(network, process, images, 20), found, rtol=0.3, atol=0)
    torch.testing.assert_close(bpd.full(Energy(torch.bfloat16), process, images).total, expected, rtol=2e-2, atol=0)
    floats = (images.float() / 127.5 - 1).half()
    assert torch.equal(bpd.full(network, process, floats).total, bpd.full(network, process, floats.float()).total)


def test_the_command(tmp_path, capsys):
    run, data = tmp_path / "a", save_images(tmp_path / "a.npz")
    assert train(data, run, "--steps=2", "--sample-every=0", "--no-tensorboard", "--variance=learned_range") == 0
    words = ["evaluate", "bpd", str(run), "-n6", "--batch-size=4"]
    assert cli.main([*words, "--out", str(tmp_path / "a.json")]) == 0
    assert "bits/dim (95%) of 6 images" in capsys.readouterr().out
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["total_bpd"] == pytest.approx(said["prior_bpd"] + sum(said["vb"])) and len(said["vb"]) == 25
    assert cli.main([*words, "--timesteps=5", "--out", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["timesteps"] == 5
    assert cli.main([*words, "--timesteps=5", "--plot", "x.png"]) == 2
    new = tmp_path / "new" / "one.json"
    assert cli.main([*words, "-n1", "--timesteps=1", "--out", str(new)]) == 0
    assert "+- inf bits/dim" in capsys.readouterr().out
    assert json.loads(new.read_text(), parse_constant=pytest.fail)["half_width"] is None
    assert cli.main([*words, "--out", str(tmp_path)]) == 2
    assert "fastdiff: out must be a file, got the folder" in capsys.readouterr().err


def test_the_plot(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    run, data = tmp_path / "a", save_images(tmp_path / "a.npz")
    assert train(data, run, "--steps=2", "--sample-every=0", "--no-tensorboard") == 0
    words = ["evaluate", "bpd", str(run), "-n2", "--plot", str(tmp_path / "a.png")]
    assert cli.main(words) == 0 and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(words) == 2
    assert "plots need matplotlib: pip install 'fastdiff[plots]'" in capsys.readouterr().err
