"""What a run leaves: whole files, and nothing damaged or foreign is taken."""

import copy
import json
import pickle
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff import files, load_unet
from fastdiff.training import EMA, checkpoint
from fastdiff.training.profiles import Power


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "checkpoints/00000007").iterdir()) == [
        "state.json",
        "state.safetensors",
    ]


def test_others_may_read_what_the_umask_lets_them(tmp_path, state):
    checkpoint.save(tmp_path, 7, *state.parts())
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~files._UMASK}


def test_several_averages(tmp_path, make_model):
    model = make_model(0)
    ema, other = EMA(model, 0.5, Power(0.1)), EMA(model, 0.5, Power(0.1))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.data.normal_()
    ema.update(model)
    checkpoint.save(tmp_path, 1, model, ema, optimizer)
    assert checkpoint.restore(tmp_path, model, other, optimizer) == 1 and same(other.state_dict(), ema.state_dict())
    with pytest.raises(ValueError, match="another network's weights"):
        checkpoint.restore(tmp_path, model, EMA(model, 0.5), optimizer)


def test_the_model_file_holds_the_average(tmp_path, state):
    before = state.tree()
    checkpoint.save(tmp_path, 7, *state.parts())
    assert same(state.tree(), before)
    assert same(dict(load_unet(tmp_path / "model.safetensors").state_dict()), state.ema.average)


def test_a_model_without_save(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path, 1, model, EMA(model), torch.optim.Adam(model.parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_weights_that_share_memory(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    parts = model, EMA(model), torch.optim.Adam(model.parameters())
    checkpoint.save(tmp_path, 1, *parts)
    assert checkpoint.restore(tmp_path, *parts) == 1 and model[1].weight is model[0].weight


def test_the_last_few_are_kept(tmp_path, state):
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, step, *state.parts(), keep=3)
    assert list(checkpoint.checkpoints(tmp_path)) == [20, 15, 10]
    checkpoint.save(tmp_path, 20, *state.parts(), keep=1)  # again, after a resumed run
    assert list(checkpoint.checkpoints(tmp_path)) == [20]


def test_one_that_was_passed_over_does_not_count(tmp_path, state):
    """The run went on from 5, past a damaged 10: what it saves next is the last."""
    for step in (5, 10, 7):
        checkpoint.save(tmp_path, step, *state.parts(), keep=1 if step == 7 else 2)
    assert list(checkpoint.checkpoints(tmp_path)) == [10, 7]


# ---- Damage ----

REFUSAL = r"resume must find a whole checkpoint of this run in '.*00000007', got "


def newest(tmp_path):
    return next(iter(checkpoint.checkpoints(tmp_path).values()))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [None, 0, 1, 100, 0.3, 0.7, -1])
def test_a_cut_checkpoint_is_refused_and_changes_nothing(tmp_path, make_model, state, name, keep):
    checkpoint.save(tmp_path, 7, *state.parts())
    path = newest(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    other = State(make_model(1))
    before = other.tree()
    with pytest.raises(ValueError, match=REFUSAL):
        checkpoint.restore(tmp_path, *other.parts())
    assert same(other.tree(), before)


def test_changed_bytes_are_noticed(tmp_path, make_model, state):
    checkpoint.save(tmp_path, 7, *state.parts())
    path = newest(tmp_path) / "state.safetensors"
    content = path.read_bytes()
    other = State(make_model(1))
    before = other.tree()
    for place in range(0, len(content) - 8, len(content) // 40):
        changed = bytes(byte ^ 0xFF for byte in content[place : place + 8])
        path.write_bytes(content[:place] + changed + content[place + 8 :])
        with pytest.raises(ValueError, match=REFUSAL + "a wrong checksum of state.safetensors"):
            checkpoint.restore(tmp_path, *other.parts())
        assert same(other.tree(), before)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_the_one_before_a_damaged_one_is_taken_with_a_warning(tmp_path, make_model, state, name):
    checkpoint.save(tmp_path, 5, *state.parts())
    five = state.tree()
    state.ema.update(state.model)
    checkpoint.save(tmp_path, 7, *state.parts())
    (newest(tmp_path) / name).write_bytes(b"damaged")
    other = State(make_model(1))
    with pytest.warns(UserWarning, match=f"passed over: {REFUSAL}"):
        assert checkpoint.restore(tmp_path, *other.parts()) == 5
    assert same(other.tree(), five)


def without(key):
    return lambda tensors, rest: rest.pop(key)


def tensor(name, value):
    return lambda tensors, rest: tensors.update({name: value})


@pytest.mark.parametrize("change", [
    without("step"), without("ema_updates"), without("optimizer"), without("optimizer_numbers"),
    lambda tensors, rest: rest.update(step="seven"),
    lambda tensors, rest: rest.update(ema_updates="many"),
    lambda tensors, rest: rest["optimizer"][0]["params"].pop(),
    lambda tensors, rest: tensors.pop("model.conv_in.weight"),
    lambda tensors, rest: tensors.pop("ema.0.conv_in.weight"),
    tensor("model.conv_in.weight", torch.zeros(4, 1, 1, 1)),
    tensor("ema.0.conv_in.bias", torch.zeros(5)),
    tensor("ema.1.conv_in.bias", torch.zeros(4)),
    tensor("optimizer.0.exp_avg", torch.zeros(3)),
    tensor("optimizer.999.exp_avg", torch.zeros(3)),
    tensor("optimizer.first.exp_avg", torch.zeros(3)),
])  # fmt: skip
def test_another_state_is_refused_and_changes_nothing(tmp_path, make_model, state, change):
    checkpoint.save(tmp_path, 7, *state.parts())
    path = newest(tmp_path)
    tensors, rest = load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text())
    change(tensors, rest)
    save_file(tensors, path / "state.safetensors")
    rest["crc32"] = checkpoint.checksum(path / "state.safetensors")
    (path / "state.json").write_text(json.dumps(rest))
    other = State(make_model(1))
    before = other.tree()
    with pytest.raises(ValueError, match="resume must find a whole checkpoint of this run"):
        checkpoint.restore(tmp_path, *other.parts())
    assert same(other.tree(), before)


def test_no_code_is_unpickled(tmp_path, state):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "evil").write_text, ("ran",)

    checkpoint.save(tmp_path, 7, *state.parts())
    for path in newest(tmp_path).iterdir():
        path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="resume must find a whole checkpoint"):
        checkpoint.restore(tmp_path, *state.parts())
    assert not (tmp_path / "evil").exists()


def test_no_checkpoint(tmp_path, state):
    with pytest.raises(FileNotFoundError, match=r"resume must find a checkpoint, got none in '.*checkpoints'"):
        checkpoint.restore(tmp_path, *state.parts())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fails", ["tensors", "rename", "model"])
def test_a_save_that_fails_leaves_the_old_files(tmp_path, state, monkeypatch, fails):
    checkpoint.save(tmp_path, 7, *state.parts())
    before = contents(tmp_path)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    if fails == "tensors":
        monkeypatch.setattr(checkpoint, "save_file", full)
    elif fails == "rename":
        monkeypatch.setattr(files.os, "rename", full)
    else:
        monkeypatch.setattr(type(state.model), "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 8, *state.parts())
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before and not list(tmp_path.rglob("*.part"))
    assert checkpoint.restore(tmp_path, *state.parts()) == (8 if fails == "model" else 7)


def test_files_that_the_system_cuts_short(tmp_path, state):
    """No stand-in: a limit on the size of files makes safetensors itself fail, in a word of its own."""
    checkpoint.save(tmp_path, 7, *state.parts())
    before, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, 8, *state.parts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before and not list(tmp_path.rglob("*.part"))


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path, state):
    checkpoint.save(tmp_path, 7, *state.parts())
    part = tmp_path / "checkpoints/00000008.part"
    part.mkdir()
    (part / "state.json").write_text("{")
    assert checkpoint.restore(tmp_path, *state.parts()) == 7
    checkpoint.save(tmp_path, 8, *state.parts())
    assert list(checkpoint.checkpoints(tmp_path)) == [8, 7] and not part.exists()


# ---- The config ----


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
