"""The average against a loop over numbers."""

import pytest
import torch

from fastdiff.training import EMA


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
            other.load_state_dict({"average": {k: v.clone() for k, v in ema.average.items()}, "updates": ema.updates})
        elif step > 2:
            other.update(net)
    assert torch.equal(other.average["weight"], ema.average["weight"]) and other.updates == 5
    with pytest.raises(ValueError, match="state must hold the average of this network"):
        ema.load_state_dict({"average": {"other": torch.zeros(2)}, "updates": 1})


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        EMA(Net(), decay)
