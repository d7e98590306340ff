"""Samplers that do all that a row can ask of the host: what they are told, and how many kinds of row they have."""

import torch

from fastdiff.samplers import Classifier, ClassifierFree, DynamicThreshold, Inpaint, Plan

SHAPE = (4, 3, 4, 4)


def model(x, t, y=None):
    return 0.3 * torch.tanh(x) + 0.001 * t.view(-1, 1, 1, 1) + (0 if y is None else 0.1 * y.view(-1, 1, 1, 1))


def multistep(process, timesteps, *, clip):
    return Plan(torch.linspace(0.9, 0.1, 9), p_x=1.1, p_m=-0.5, bound=1, c_0=0.5, c_1=0.2, write=[0, 1] * 4 + [0],
                q_0=1, c_2=[0] + [0.1] * 8, std=0.3, c_in=torch.linspace(0.5, 1, 9), start=3)  # fmt: skip


def adjusting(process, timesteps, *, clip):
    """Every second row is scaled by each sample's own size, and by its noise."""

    def adjust(rows, row, x, model_output, noise):
        size = x.flatten(1).norm(dim=1) / (1 + noise.flatten(1).norm(dim=1))
        rows[:, 8].mul_(size / (1 + model_output[-len(x) :].flatten(1).norm(dim=1)))  # c_0

    return Plan(range(89, -1, -10), p_x=1.1, p_m=-0.5, bound=1, c_0=0.7, c_x=0.4, std=0.2, adjust=adjust,
                adjusted=[True, False] * 4 + [True], c_in=torch.linspace(0.5, 1, 9))  # fmt: skip


KNOWN, MASK = torch.linspace(-1, 1, 48).view(1, 3, 4, 4), torch.eye(4).view(1, 1, 4, 4)
CASES = {
    "plain": ({}, {}, 1),
    "history and c_in": ({"solver": multistep}, {}, 1),
    "rows of their own": ({"solver": adjusting}, {}, 2),
    "guided rows of their own": ({"solver": adjusting, "guidance": ClassifierFree(3.0, -1)}, {"condition": 2}, 2),
    "guided in an interval": ({"guidance": ClassifierFree(3.0, -1, 0.7, (30, 60))}, {"condition": [1, 2, 3, 4]}, 2),
    "dynamic threshold": ({"clip": DynamicThreshold(0.9)}, {}, 1),
    "inpainting with jumps": ({}, {"inpaint": Inpaint(KNOWN, MASK, 2, 2)}, 2),
    "classifier": ({"guidance": Classifier(lambda x, t, y: y.view(-1, 1, 1, 1) - x)}, {"condition": 1}, 1),
}
