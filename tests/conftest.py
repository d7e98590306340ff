"""Triton runs in its interpreter where there is no GPU, and the interpreter rounds as a GPU does."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
