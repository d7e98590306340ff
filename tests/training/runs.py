"""Short runs of the loop, and what they leave."""

import json

import torch
from safetensors.torch import load_file

from fastdiff.training import TrainConfig, train
from fastdiff.training.checkpoint import checkpoints

QUICK = dict(batch_size=6, lr=1e-2, warmup=2, log_every=5, tensorboard=False)


def config(**options):
    return TrainConfig(**{**QUICK, "steps": 12, "checkpoint_every": 5, "sample_every": 0, **options})


def run(model, process, images, out, configuration=None, **options):
    return train(model, process, images, out, configuration or config(), progress=False, **options)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved(out):
    """Every tensor of the newest checkpoint."""
    return load_file(next(iter(checkpoints(out).values())) / "state.safetensors")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states_equal(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


class Killed(BaseException):
    pass


def killed_at(model, stop):
    """The model, whose run ends without a word after `stop` steps."""
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) > stop:
            raise Killed

    model.register_forward_pre_hook(count)
    return model
