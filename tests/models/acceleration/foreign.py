"""Networks as other people write them, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn


class GroupNorm32(nn.GroupNorm):
    """OpenAI's: computed in float32."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class OpenAIBlock(nn.Module):
    """A residual block in OpenAI's manner: FiLM or a sum, taken apart in its forward."""

    def __init__(self, channels, out_channels, embedding, film, checkpointed=False):
        super().__init__()
        self.film, self.checkpointed = film, checkpointed
        first, second = (nn.Conv2d(width, out_channels, 3, padding=1) for width in (channels, out_channels))
        self.in_layers = nn.Sequential(GroupNorm32(4, channels), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels if film else out_channels))
        self.out_layers = nn.Sequential(GroupNorm32(4, out_channels), nn.SiLU(), nn.Dropout(0.5), second)
        self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        if self.checkpointed:
            return torch.utils.checkpoint.checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x, emb):
        h = self.in_layers(x)
        emb_out = self.emb_layers(emb).type(h.dtype)
        while len(emb_out.shape) < 4:
            emb_out = emb_out[..., None]
        if self.film:
            norm, rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(emb_out, 2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(x) + h


class Block(nn.Module):
    """As OpenAI's, without asking for shapes."""

    def __init__(self, film):
        super().__init__()
        self.film = film
        self.norm_1, self.norm_2 = GroupNorm32(4, 8), nn.GroupNorm(2, 8, eps=1e-3)
        self.conv_1, self.conv_2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.drop = nn.SiLU(), nn.Dropout(0.5)
        self.emb = nn.Linear(16, 16 if film else 8)

    def forward(self, x, emb=None):
        h = self.conv_1(self.act(self.norm_1(x)))
        if emb is not None:
            out = self.emb(self.act(emb))[:, :, None, None]
            if self.film:
                scale, shift = out.chunk(2, dim=1)
                h = self.norm_2(h) * (scale + 1) + shift
            else:
                h = self.norm_2(out + h)
        else:
            h = self.norm_2(h)
        return x + self.conv_2(self.drop(self.act(h)))


class Net(nn.Module):
    """Blocks with and without an embedding, below a model that has a norm of its own, applied in two statements."""

    def __init__(self, film):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(film), Block(film)])
        self.norm_out, self.act_out = nn.GroupNorm(4, 8), nn.SiLU()
        self.out = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x, t):
        emb = torch.cos(t[:, None] * torch.arange(16.0) / 16)
        h = self.blocks[1](self.blocks[0](self.first(x), emb))
        h = self.norm_out(h)
        h = self.act_out(h)
        return self.out(h)


class Functional(nn.Module):
    """x * sigmoid(x), and addcmul for FiLM."""

    def __init__(self):
        super().__init__()
        self.norm, self.embedding = nn.GroupNorm(2, 8, affine=False), nn.Linear(4, 16)

    def forward(self, x, emb):
        scale, shift = self.embedding(emb)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm(x), scale + 1)
        return h * torch.sigmoid(h) + F.silu(self.norm(x))


class Spatial(nn.Module):
    """FiLM by maps (SPADE), and a sum of two maps: not per channel."""

    def __init__(self):
        super().__init__()
        self.norm, self.film = nn.GroupNorm(2, 8), nn.Conv2d(8, 16, 1)

    def forward(self, x, guide):
        scale, shift = self.film(guide).chunk(2, 1)
        return F.silu(self.norm(x + guide) * (1 + scale) + shift)


class Classic(nn.Module):
    """A torchvision block with GroupNorm in BatchNorm's place, and ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def drawn(model):
    """With weights that all matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def gradients(model, args):
    args = tuple(arg.detach().clone().requires_grad_() for arg in args)
    model.zero_grad(set_to_none=True)
    model(*args).square().sum().backward()
    return [value.grad.clone() for value in (*args, *model.parameters()) if value.grad is not None]


def assert_near(found, expected):
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=tolerance)
