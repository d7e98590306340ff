"""A small run of the command line, in this process or another."""

import json
import os
import subprocess
import sys

import numpy as np

from fastdiff import cli

# A network of a thousand weights and a process of 25 steps.
TINY = [
    "--channels=4", "--channel-mult=1", "--groups=2", "--num-res-blocks=1", "--attention-resolutions=", "--dropout=0",
    "--num-timesteps=25", "--batch-size=4", "--num-samples=2",
]  # fmt: skip


def save_images(path, size=4, channels=1):
    shape = (9, size, size) if channels == 1 else (9, size, size, channels)
    np.savez(path, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return str(path)


def train(data, out, *options, threads=("--threads=1",)):
    """The exit status of `fastdiff train` with a tiny network, on one thread, the quickest for it."""
    return cli.main(["train", "--data", str(data), "--out", str(out), "--quiet", *TINY, *threads, *options])


def steps_logged(out):
    with open(out / "metrics.jsonl") as file:
        return [json.loads(line)["step"] for line in file]


def start(*arguments):
    """The command in a process of its own, on one thread."""
    command = [sys.executable, "-m", "fastdiff", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
