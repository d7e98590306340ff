"""The average against a loop over numbers."""

import pytest
import torch

from fastdiff.training import EMA
from fastdiff.training.profiles import Power


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))


def values(step):
    return [1.0 + step, (-2.0) ** step]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_formula(decay):
    net = Net()
    ema, expected = EMA(net, decay), [0.0, 0.0]
    for step in range(30):
        net.weight.data = torch.tensor(values(step))
        net.count.fill_(step)
        ema.update(net)
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * old + (1 - d) * new for old, new in zip(expected, values(step), strict=True)]
        assert ema.average["weight"].tolist() == pytest.approx(expected, rel=1e-5)
        assert ema.average["count"].item() == step
    assert ema.updates == 30


def test_the_average_of_low_precision_weights_is_float32():
    net = Net().to(torch.bfloat16)
    ema = EMA(net, 0.999)
    ema.updates = 10**6
    net.weight.data.fill_(1.0)
    for _ in range(10):
        ema.update(net)
    assert ema.average["weight"].dtype is torch.float32
    assert ema.average["weight"][0].item() == pytest.approx(1 - 0.999**10, rel=1e-4)
    with ema.applied(net):
        assert net.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("scalar_lists", [True, False], ids=["one pass", "before torch 2.8"])
def test_several_profiles(monkeypatch, scalar_lists):
    """Each as if it were alone; a power function's against its definition, the average weighted by tau^gamma."""
    if not scalar_lists:
        lerp = torch._foreach_lerp_

        def old(targets, weights, share):
            if isinstance(share, list):
                raise TypeError
            lerp(targets, weights, share)

        monkeypatch.setattr(torch, "_foreach_lerp_", old)
    net, kinds = Net(), (0.9, Power(0.1), 0.999)
    together, alone = EMA(net, *kinds), [EMA(net, kind) for kind in kinds]
    for step in range(40):
        net.weight.data = torch.tensor([1.0 + step, 5.0])
        for ema in (together, *alone):
            ema.update(net)
    for average, ema in zip(together.averages, alone, strict=True):
        assert torch.equal(average["weight"], ema.average["weight"])
    edges = torch.arange(41, dtype=torch.float64) ** (Power(0.1).gamma + 1)
    weights = (edges[1:] - edges[:-1]) / edges[-1]
    expected = (weights * torch.arange(1, 41)).sum().item()
    assert together.averages[1]["weight"][0].item() == pytest.approx(expected, rel=1e-5)
    with together.applied(net, profile=2):
        assert torch.equal(net.weight, together.averages[2]["weight"])


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25, 0.28])
def test_sigma_rel_is_the_relative_deviation(sigma_rel):
    """Of a variable of density (gamma + 1) tau^gamma on [0, 1]."""
    g = Power(sigma_rel).gamma
    variance = (g + 1) / (g + 3) - ((g + 1) / (g + 2)) ** 2
    assert variance**0.5 == pytest.approx(sigma_rel, rel=1e-9)


def test_gamma_of_the_paper():
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert Power(0.05).gamma == pytest.approx(16.97, abs=0.005) and Power(0.10).gamma == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.3, "wide", float("nan")])
def test_bad_sigma_rel(sigma_rel):
    with pytest.raises(ValueError, match=r"sigma_rel must be in \(0, 0.28\], got"):
        Power(sigma_rel)


def test_it_is_a_copy():
    net = Net()
    ema = EMA(net)
    net.weight.data.fill_(5.0)
    assert not ema.average["weight"].any() and not ema.average["weight"].requires_grad


def test_applied_and_back():
    net = Net()
    ema = EMA(net)
    net.weight.data.fill_(5.0)
    with ema.applied(net) as same:
        assert same is net and net.weight.tolist() == [0, 0]
    assert net.weight.tolist() == [5, 5]
    with pytest.raises(KeyError), ema.applied(net):
        raise KeyError
    assert net.weight.tolist() == [5, 5] and ema.average["weight"].tolist() == [0, 0]


def test_state():
    net = Net()
    ema, other = EMA(net, 0.9), EMA(net, 0.9)
    for step in range(5):
        net.weight.data = torch.tensor(values(step))
        ema.update(net)
        if step == 2:
            copied = {name: value.clone() for name, value in ema.average.items()}
            other.load_state_dict({"averages": [copied], "updates": ema.updates})
        elif step > 2:
            other.update(net)
    assert torch.equal(other.average["weight"], ema.average["weight"]) and other.updates == 5
    with pytest.raises(ValueError, match="state must hold the averages of this network"):
        ema.load_state_dict({"averages": [{"other": torch.zeros(2)}], "updates": 1})


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        EMA(Net(), decay)
