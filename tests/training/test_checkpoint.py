"""What a run leaves: whole files, and nothing damaged or foreign is taken."""

import copy
import json
import re

import pytest
import torch

from fastdiff import load_unet
from fastdiff.training import EMA, checkpoint


class State:
    """A model that was trained for a step."""

    def __init__(self, model):
        self.model, self.ema = model, EMA(model, 0.5)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        self.model(torch.randn(2, 1, 4, 4), torch.tensor([1, 2])).square().sum().backward()
        self.optimizer.step()
        self.ema.update(model)

    def parts(self):
        return self.model, self.ema, self.optimizer

    def tree(self):
        return copy.deepcopy([part.state_dict() for part in self.parts()])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.stride() == b.stride()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def state(make_model):
    return State(make_model(0))


def test_round_trip(tmp_path, make_model, state):
    checkpoint.save(tmp_path, 7, *state.parts())
    other = State(make_model(1))
    assert not same(other.tree(), state.tree())
    assert checkpoint.restore(tmp_path, *other.parts()) == 7
    assert same(other.tree(), state.tree())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "model.safetensors"]


def test_the_model_file_holds_the_average(tmp_path, state):
    before = state.tree()
    checkpoint.save(tmp_path, 7, *state.parts())
    assert same(state.tree(), before)
    assert same(dict(load_unet(tmp_path / "model.safetensors").state_dict()), state.ema.average)


def test_a_model_without_save(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path, 1, model, EMA(model), torch.optim.Adam(model.parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


REFUSAL = r"resume must find a whole checkpoint of this run in '.*checkpoint\.pt', got "


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.7, -1])
def test_a_cut_checkpoint_is_refused_and_changes_nothing(tmp_path, make_model, state, keep):
    checkpoint.save(tmp_path, 7, *state.parts())
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    other = State(make_model(1))
    before = other.tree()
    with pytest.raises(ValueError, match=REFUSAL):
        checkpoint.restore(tmp_path, *other.parts())
    assert same(other.tree(), before)


def test_changed_bytes_are_noticed(tmp_path, make_model, state):
    """Wherever eight bytes are changed, the checkpoint is refused, or none of its contents was among them."""
    checkpoint.save(tmp_path, 7, *state.parts())
    content = (tmp_path / "checkpoint.pt").read_bytes()
    other, refused = State(make_model(1)), 0
    before = other.tree()
    for place in range(0, len(content) - 8, len(content) // 40):
        changed = bytes(byte ^ 0xFF for byte in content[place : place + 8])
        (tmp_path / "checkpoint.pt").write_bytes(content[:place] + changed + content[place + 8 :])
        try:
            checkpoint.restore(tmp_path, *other.parts())
        except ValueError as error:
            assert re.match(REFUSAL, str(error)) and same(other.tree(), before)
            refused += 1
        else:
            assert same(other.tree(), state.tree())
            other = State(make_model(1))
            before = other.tree()
    assert refused > 20


def without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize("change", [
    without("step"), without("model"), without("ema"), without("optimizer"),
    lambda state: state.update(step="seven"),
    lambda state: state["model"].popitem(),
    lambda state: state["model"].update({"conv_in.weight": torch.zeros(4, 1, 1, 1)}),
    lambda state: state["model"].update({"conv_in.weight": 3}),
    lambda state: state["ema"]["average"].popitem(),
    lambda state: state["ema"]["average"].update({"conv_in.bias": torch.zeros(5)}),
    lambda state: state["ema"].update(updates="many"),
    lambda state: state["optimizer"]["param_groups"][0]["params"].pop(),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda state: state["optimizer"]["state"].update({999: {"exp_avg": torch.zeros(3)}}),
])  # fmt: skip
def test_another_state_is_refused_and_changes_nothing(tmp_path, make_model, state, change):
    checkpoint.save(tmp_path, 7, *state.parts())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    change(saved)
    torch.save(saved, tmp_path / "checkpoint.pt")
    other = State(make_model(1))
    before = other.tree()
    with pytest.raises(ValueError, match="resume must find a whole checkpoint of this run"):
        checkpoint.restore(tmp_path, *other.parts())
    assert same(other.tree(), before)


def test_no_code_is_unpickled(tmp_path, state):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "evil").write_text, ("ran",)

    torch.save({"step": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="resume must find a whole checkpoint"):
        checkpoint.restore(tmp_path, *state.parts())
    assert not (tmp_path / "evil").exists()


def test_no_checkpoint(tmp_path, state):
    with pytest.raises(FileNotFoundError):
        checkpoint.restore(tmp_path, *state.parts())


def test_a_save_that_fails_leaves_the_old_file(tmp_path, state, monkeypatch):
    checkpoint.save(tmp_path, 7, *state.parts())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 8, *state.parts())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_config(tmp_path):
    checkpoint.write_config(tmp_path, {"steps": 3, "model": {"channel_mult": (1, 2)}})
    assert checkpoint.read_config(tmp_path) == {"steps": 3, "model": {"channel_mult": [1, 2]}}
    assert checkpoint.as_json({"a": (1, (2,))}) == {"a": [1, [2]]}
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 3


@pytest.mark.parametrize("content, kind, message", [
    (None, FileNotFoundError, r"out must be a directory of fastdiff train, got '.*' without config\.json"),
    (b"{", ValueError, "out must hold a config.json of JSON, got '.*config.json'"),
    (b"\xff\xfe\xfd", ValueError, "out must hold a config.json of JSON"),
    (b"[]", ValueError, "out must hold a config.json of fastdiff train, got list"),
])  # fmt: skip
def test_what_is_no_run(tmp_path, content, kind, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(kind, match=message):
        checkpoint.read_config(tmp_path, "out")


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="run must be a directory of fastdiff train"):
        checkpoint.read_config(tmp_path / "file")
