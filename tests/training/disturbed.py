"""A small run in a process of its own, which may be killed, run out of disk, or be one of several ranks.

    python -m tests.training.disturbed OUT STEPS HOW [NUMBER]

HOW: "whole"; "fsdp": each rank holds its part of the weights; "step": SIGKILL before step NUMBER of this process;
"sync": SIGKILL before the NUMBER-th time that a file is synced, which happens while saving alone; "full": no file may
have more than NUMBER bytes once a checkpoint is there.
OUT/fed-<rank>.json holds, step by step, a checksum of each image that the network was fed.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import torch

from fastdiff import GaussianProcess, UNet, UNetConfig, files, schedules
from fastdiff.training import TrainConfig, ranks, train
from fastdiff.training.checkpoint import checkpoints

OPTIONS = dict(batch_size=8, lr=1e-2, warmup=2, log_every=1, checkpoint_every=3, sample_every=0, flip=True,
               timesteps="loss-aware", tensorboard=False)  # fmt: skip


def run(out, steps, how="whole", number=0):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = dict(image_size=4, in_channels=1, channels=4, channel_mult=(1, 2), attention_resolutions=(), groups=2)
    model = UNet(UNetConfig(**network, dropout=0.2))
    images = torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    out, resume = Path(out), (Path(out) / "config.json").exists()
    disturb(model, out, how, number)
    with ranks.joined("cpu"):
        fed = record(model)
        config = TrainConfig(steps=steps, shard="fsdp" if how == "fsdp" else "ddp", **OPTIONS)
        train(model, GaussianProcess(schedules.linear(50)), images, out / ".", config, resume=resume, progress=False)
        (out / f"fed-{ranks.Ranks().rank}.json").write_text(json.dumps(fed))


def record(model):
    fed = []

    def note(module, arguments):
        x_t, t = arguments
        fed.append([zlib.crc32(x.contiguous().numpy().tobytes()) + int(time) for x, time in zip(x_t, t, strict=True)])

    model.register_forward_pre_hook(note)
    return fed


def disturb(model, out, how, number):
    calls = []

    def kill(*_):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def fill(*_):
        if checkpoints(out):
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    if how == "step":
        model.register_forward_pre_hook(kill)
    elif how == "full":
        model.register_forward_pre_hook(fill)
    elif how == "sync":
        sync = files.sync
        files.sync = lambda path: (kill(), sync(path))


def start(*arguments, world=1):
    """[(exit status, stderr)] of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.training.disturbed", *map(str, arguments)]
    started = []
    for rank in range(world):
        place = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1")
        env = {**os.environ, **place, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[2]
        started.append(subprocess.Popen(command, env=env, cwd=root, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


if __name__ == "__main__":
    out, steps, how, *number = sys.argv[1:]
    run(out, int(steps), how, *map(int, number))
